"""What a large log costs: seconds and peak memory of reading, of fingerprinting, of all that `load_dataset` does, and
of a first and a second run, which keep the result in the cache and take it from there.

    python -m benchmarks.data_at_scale                        # 20 M interactions, 140 k users, 30 k items, as CSV
    python -m benchmarks.data_at_scale --format parquet --interactions 1000000

The log is synthetic: users and items of a long tail, times within two years, a title for every item. Each step runs in
a process of its own, whose peak memory is that of the step and what it needs before it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from src.data.adapters import find_adapter
from src.data.dataset import load_dataset
from src.data.interactions import Interactions
from src.data.settings import DatasetSettings
from src.pipeline.cache import StageCache
from src.pipeline.prepared_data import prepared_data

_START, _SPAN = 1_500_000_000, 2 * 365 * 86_400
_BLOCK = 2_000_000


@dataclass(frozen=True)
class Size:
    """How large the log is."""

    interactions: int = 20_000_000
    users: int = 140_000
    items: int = 30_000


def write_log(folder: Path, size: Size, form: str, seed: int = 0) -> Path:
    """A log ``log.csv``, ``.tsv``, ``.csv.gz``, ``.csv.zst`` or ``.parquet``, and ``items.csv`` beside it."""
    random = np.random.default_rng(seed)
    path = folder / f"log.{form}"
    schema = pa.schema(
        [("user_id", pa.int64()), ("item_id", pa.string()), ("rating", pa.float64()), ("timestamp", pa.int64())]
    )
    names = pa.array([f"B{item:09d}" for item in range(size.items)])
    with _writer(path, schema) as writer:
        for start in range(0, size.interactions, _BLOCK):
            rows = min(_BLOCK, size.interactions - start)
            users = (size.users * random.random(rows) ** 2).astype(np.int64)
            items = (size.items * random.random(rows) ** 3).astype(np.int64)
            if start == 0:
                # everybody and everything is met
                users[: size.users] = np.arange(min(size.users, rows))
                items[: size.items] = np.arange(min(size.items, rows))
            columns = [
                pa.array(users),
                names.take(pa.array(items)),
                pa.array(random.integers(1, 11, rows) / 2),
                pa.array(random.integers(_START, _START + _SPAN, rows)),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    titles = pa.table({"item_id": names, "title": [f"Item {item}, the first" for item in range(size.items)]})
    pyarrow.csv.write_csv(titles, folder / "items.csv")
    return path


def _writer(path: Path, schema: pa.Schema) -> Any:
    if path.suffix == ".parquet":
        return pyarrow.parquet.ParquetWriter(path, schema)
    options = pyarrow.csv.WriteOptions(delimiter="\t" if ".tsv" in path.name else ",")
    kind = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    sink = pa.CompressedOutputStream(str(path), kind) if kind else str(path)
    return pyarrow.csv.CSVWriter(sink, schema, write_options=options)


def read(settings: DatasetSettings) -> Interactions:
    """The log as `Interactions`."""
    source = find_adapter(settings.adapter).load(settings)
    assert isinstance(source, Interactions)
    return source


def _fingerprint(settings: DatasetSettings) -> str:
    return read(settings).fingerprint


def _whole(settings: DatasetSettings) -> str:
    """Read, split and fingerprinted, as every run does before it trains."""
    data = load_dataset(settings)
    return " ".join(data.fingerprints().values())


def _run(settings: DatasetSettings) -> str:
    """As a run asks for its data: kept beside the log."""
    data = prepared_data(settings, StageCache(settings.root / "cache"))
    return " ".join(data.fingerprints().values())


#: Each step holds the ones before it, but for the last.
STEPS: dict[str, Callable[[DatasetSettings], object]] = {
    "read": read, "read, fingerprint": _fingerprint, "read, split, fingerprint": _whole,
    "first run": _run, "second run": _run,
}  # fmt: skip


def measure(step: str, settings: DatasetSettings) -> dict[str, Any]:
    """Seconds (of the clock and of all processors together) and peak memory (MB) of a step, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_measured, args=(step, settings, results))
    process.start()
    process.join()
    if process.exitcode != 0:
        return {"step": step, "failed": process.exitcode}
    found: dict[str, Any] = results.get()
    return found


def _measured(step: str, settings: DatasetSettings, results: Any) -> None:
    before = _peak()
    start, worked = time.perf_counter(), time.process_time()
    STEPS[step](settings)
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    results.put({
        "step": step, "seconds": round(seconds, 1), "cpu_seconds": round(worked, 1), "peak_mb": round(_peak()),
        "imports_mb": round(before),
    })  # fmt: skip


def _peak() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = Size()
    parser.add_argument("--interactions", type=int, default=size.interactions)
    parser.add_argument("--users", type=int, default=size.users)
    parser.add_argument("--items", type=int, default=size.items)
    parser.add_argument("--format", default="csv", choices=["csv", "tsv", "csv.gz", "csv.zst", "parquet"])
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--folder", type=Path, help="keep the log here, and use the one that is there")
    return parser.parse_args(given)


def main(given: Sequence[str]) -> list[dict[str, Any]]:
    """Measure and print; returns the rows."""
    options = arguments(given)
    size = Size(options.interactions, options.users, options.items)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"log.{options.format}"
        if not path.exists():
            write_log(folder, size, options.format)
        settings = DatasetSettings(
            adapter="table", root=folder, name="log", interactions_file=path.name, items_file="items.csv"
        )
        print(json.dumps({**vars(size), "format": options.format, "file_mb": round(path.stat().st_size / 1e6)}))
        rows = []
        if "first run" in options.steps:
            shutil.rmtree(folder / "cache", ignore_errors=True)
        for step in options.steps:
            rows.append(measure(step, settings))
            print(json.dumps(rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
