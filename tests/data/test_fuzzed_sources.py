"""Damaged sources: bytes changed at random are read, or told in this project's words; never a traceback."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from src.core.errors import ProblemsFound
from src.data.dataset import load_dataset
from src.data.settings import DatasetSettings
from tests.data.test_presets import WRITERS, composed
from tests.data.toy_sources import SOURCES, write_table

MUTATIONS = 25
SNIPPETS = (
    b"",
    b"\n",
    b"\t",
    b'"',
    b",",
    b"::",
    b"\xff",
    b"\x00",
    b"nan",
    b"1e30",
    b"-1",
    b"[",
    b"null",
    b"&#;",
    b"9" * 40,
)


def _parquet(folder: Path, changed: bool) -> DatasetSettings:
    settings = write_table(folder, changed)
    pyarrow.parquet.write_table(pa.csv.read_csv(folder / "log.csv"), folder / "log.parquet")
    (folder / "log.csv").unlink()
    return settings


def _preset(option: str) -> Callable[[Path, bool], DatasetSettings]:
    def make(folder: Path, changed: bool) -> DatasetSettings:
        WRITERS[option](folder)
        return composed(option, folder)

    return make


FUZZED = {
    **{name: make for name, make in SOURCES.items() if name != "sample"},
    "table-parquet": _parquet,
    **{option: _preset(option) for option in ("amazon_2018", "amazon_2023", "steam", "movielens_25m", "lastfm")},
}


def mutate(content: bytes, chance: random.Random) -> bytes:
    """A few bytes cut out, put in, doubled or changed; or the end torn off."""
    kind = chance.randrange(5)
    start = chance.randrange(len(content) + 1)
    end = min(len(content), start + chance.choice((1, 3, 40)))
    if kind == 0:
        return content[:start] + content[end:]
    if kind == 1:
        return content[:start] + chance.choice(SNIPPETS) + content[start:]
    if kind == 2:
        return content[:end] + content[start:]
    if kind == 3:
        return content[:start]
    return content[:start] + chance.randbytes(end - start) + content[end:]


@pytest.mark.parametrize("name", FUZZED)
def test_a_damaged_source_is_read_or_refused(name: str, tmp_path: Path) -> None:
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    whole.mkdir()
    settings = FUZZED[name](whole, False)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    chance = random.Random(name)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(MUTATIONS):
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(whole, damaged)
        path = damaged / chance.choice(files)
        path.write_bytes(mutate(path.read_bytes(), chance))
        try:
            load_dataset(DatasetSettings(**{**vars(settings), "root": damaged}))
            outcomes["read"] += 1
        except ProblemsFound:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 0
