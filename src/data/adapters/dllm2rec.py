"""DLLM2Rec's data folder: ``data/<name>/`` with ``train_data``, ``val_data``, ``test_data`` and ``data_statis``."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from src.core.errors import DataError, Problem
from src.data.delimited import limited, read_text
from src.data.id_map import IdMap
from src.data.pre_split import PreSplit
from src.data.sequence_table import read_columns, read_sequence_table
from src.data.settings import DatasetSettings

READS = frozenset({"titles_file"})

_TABLES = {"train": "train_data", "validation": "val_data", "test": "test_data"}


def load(settings: DatasetSettings) -> PreSplit:
    """Read the three tables (``.df`` or ``.csv``) and the catalogue's size; titles come from ``root/<titles_file>``.

    Row i of ``train_data`` has ``example_id`` i: it is row i of the teacher's text files.
    """
    folder = settings.root / "data" / settings.name
    if not folder.is_dir():
        step = "dataset.root must hold data/<dataset.name>/"
        raise DataError.one("folder", str(folder), "does not exist", step)
    num_items = _num_items(folder)
    titles = ("",) * num_items
    if settings.titles_file is not None:
        titles = read_titles(settings.root / settings.titles_file, num_items)
    id_map = IdMap(tuple(map(str, range(num_items))), titles)
    tables = {split: read_sequence_table(folder, stem, num_items) for split, stem in _TABLES.items()}
    return PreSplit(settings.name, id_map, tables)


def _num_items(folder: Path) -> int:
    columns = read_columns(folder, "data_statis")
    values = columns.get("item_num", [])
    try:
        number = float(values[0])
        if number != int(number) or number < 1:
            raise ValueError
    except (IndexError, ValueError, TypeError, OverflowError):
        rule = "must have a column item_num with one whole number, the number of items"
        raise DataError.one(f"{folder / 'data_statis'} item_num", values[:3], rule) from None
    return int(number)


def read_titles(path: Path, num_items: int) -> tuple[str, ...]:
    """Titles of items 0..V-1 from a JSON list, a JSON object or a CSV ``id,title``; ``""`` for items left out.

    Raises ``DataError`` for ids outside the catalogue and a list of another length.
    """
    pairs = _pairs(path, read_text(path, next_step="check dataset.titles_file, a path under dataset.root"), num_items)
    titles = [""] * num_items
    problems = []
    for place, raw, title in pairs:
        if raw.isdecimal() and int(raw) < num_items:
            titles[int(raw)] = title
        else:
            problems.append(Problem(place, raw, f"is outside the catalogue 0..{num_items - 1}"))
    if problems:
        raise DataError(limited(problems, str(path)))
    return tuple(titles)


def _pairs(path: Path, text: str, num_items: int) -> list[tuple[str, str, str]]:
    """(where, id, title) of each entry."""
    if path.suffix == ".csv":
        rows = list(csv.reader(io.StringIO(text, newline="")))[1:]
        if wrong := [line for line, row in enumerate(rows, start=2) if len(row) != 2]:
            raise DataError.one(f"{path} line {wrong[0]}", rows[wrong[0] - 2], "must be id,title")
        return [(f"{path} line {line}", row[0].strip(), row[1].strip()) for line, row in enumerate(rows, start=2)]
    try:
        content: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError.one(f"{path} line {error.lineno}", error.msg, "must be JSON, or a file named .csv") from None
    if isinstance(content, list):
        if len(content) != num_items:
            raise DataError.one(str(path), len(content), f"must list {num_items} titles, one an item")
        content = dict(enumerate(content))
    if not isinstance(content, dict):
        raise DataError.one(str(path), type(content).__name__, "must be a list of titles or an object {id: title}")
    return [(str(path), str(raw), str(title)) for raw, title in content.items()]
