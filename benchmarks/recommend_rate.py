"""How many users a second `recommend` serves, and how long a million of them would take.

python -m benchmarks.recommend_rate --items 20000 --users 20000

A student with drawn weights is exported over a catalogue of the given size, then a Parquet file of histories goes
through the command's own code. What is told for a million users is the measured rate carried on. Seconds of processors
are told beside those of the clock, because other work on a machine stretches the latter.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from src.core.paths import write_json
from src.core.result_files import BEST_STUDENT
from src.data.id_map import IdMap
from src.serving.export import ExportStudentSettings, check_export, export_student
from src.serving.recommend import RecommendSettings, check_recommend, recommend_file
from src.student.artefact import save_student
from src.student.models import build_recommender, student_settings


def drawn_export(folder: Path, num_items: int, architecture: str, width: int) -> Path:
    """An exported student with drawn weights."""
    fields = {"width": width} if architecture not in ("linear", "ease", "transitions", "popularity") else {}
    settings = student_settings(architecture, **fields)
    torch.manual_seed(0)
    model = build_recommender(settings, num_items, 20)
    id_map = IdMap(tuple(f"i{item}" for item in range(num_items)), tuple(f"Item {item}" for item in range(num_items)))
    (folder / "result").mkdir()
    prints = {"id_map": id_map.fingerprint}
    save_student(folder / "result" / BEST_STUDENT, model.eval(), settings, id_map, prints, {})
    write_json(folder / "result" / "manifest.json", {"kind": "drawn", "seed": 0})
    chosen = ExportStudentSettings(result=folder / "result", out=folder / "export", name=architecture)
    export_student(chosen, check_export(chosen), folder / "export")
    return folder / "export"


def write_histories(path: Path, users: int, num_items: int, longest: int) -> None:
    """Histories of 1 to ``longest`` drawn items."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, longest + 1, users)
    names = pa.array([f"i{item}" for item in range(num_items)])
    items = names.take(pa.array(random.integers(0, num_items, int(lengths.sum()))))
    offsets = pa.array(np.r_[0, np.cumsum(lengths)].astype(np.int32))
    table = {
        "user": pa.array([f"u{user}" for user in range(users)]),
        "history": pa.ListArray.from_arrays(offsets, items),
    }
    pq.write_table(pa.table(table), path)


def main(given: Sequence[str] | None = None) -> None:
    """Print a line for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--users", type=int, default=20_000, help="the measured part")
    parser.add_argument("--longest", type=int, default=100)
    parser.add_argument("--student", default="transformer")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, nargs="+", default=[512])
    chosen = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begun = time.perf_counter()
        student = drawn_export(folder, chosen.items, chosen.student, chosen.width)
        print(f"export: {time.perf_counter() - begun:.1f} s")
        write_histories(folder / "users.parquet", chosen.users, chosen.items, chosen.longest)
        for batch in chosen.batch:
            out = folder / f"out_{batch}.parquet"
            settings = RecommendSettings(
                student=student, histories=folder / "users.parquet", out=out, k=10, batch_size=batch
            )
            plan, worked = check_recommend(settings), time.process_time()
            counts = recommend_file(settings, plan)
            worked = time.process_time() - worked
            rate = counts.users / counts.seconds
            print(
                f"{chosen.student}, {chosen.items:,} items, batches of {batch}: {counts.users:,} users in "
                f"{counts.seconds:.1f} s = {rate:,.0f} a second; a million: {1e6 / rate / 60:.1f} min (carried on); "
                f"{worked:.1f} s of processors, {counts.users / worked:,.0f} users for each"
            )


if __name__ == "__main__":
    main()
