"""Published tables of ready-made sequences: columns ``seq``, ``len_seq`` and ``next``, pickled or as CSV."""

from __future__ import annotations

import ast
import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.core.errors import DataError, Problem
from src.data.delimited import limited, read_text
from src.data.restricted_pickle import Columns, read_pickled_table

_COLUMNS = ("seq", "len_seq", "next")
#: No id and no length is larger: a number beyond it (1e30) is damage.
_LARGEST = 1 << 53
#: Stands in cells that hold nothing.
NO_ID = -1


@dataclass(frozen=True, eq=False)
class SequenceTable:
    """N rows as in the file: ``cells`` ``[N, W]`` ids with their padding, ``length`` ``[N]``, ``target`` ``[N]``."""

    path: Path
    cells: NDArray[np.int64]
    length: NDArray[np.int64]
    target: NDArray[np.int64]
    lines: tuple[int, ...] | None

    def __len__(self) -> int:
        return len(self.target)

    def where(self, row: int) -> str:
        """File and line of a row (file and row number for a pickle)."""
        return _where(self.path, self.lines, row)

    @property
    def real(self) -> NDArray[np.bool_]:
        """``[N, W]``: which cells are history, not padding."""
        mask: NDArray[np.bool_] = np.arange(self.cells.shape[1])[None, :] < self.length[:, None]
        return mask

    @property
    def padding(self) -> NDArray[np.int64]:
        """The distinct ids that stand behind the histories."""
        cells = self.cells[~self.real]
        return np.unique(cells[cells != NO_ID])

    def check(self, num_items: int) -> list[Problem]:
        """Ids outside the catalogue, and padding that is not V."""
        step = f"the catalogue has {num_items} items; are the ids of another file or counted from 1?"
        outside = (self.target < 0) | (self.target >= num_items)
        problems = [
            Problem(self.where(int(row)), int(self.target[row]), f"next is outside 0..{num_items - 1}", step)
            for row in np.flatnonzero(outside)
        ]
        wrong = self.real & ((self.cells < 0) | (self.cells >= num_items))
        problems += [
            Problem(self.where(int(row)), int(self.cells[row, place]), f"seq is outside 0..{num_items - 1}", step)
            for row, place in zip(*np.nonzero(wrong), strict=True)
        ]
        problems = limited(problems, str(self.path))
        if (unexpected := self.padding[self.padding != num_items]).size:
            rule = f"padding must be {num_items}, the number of items"
            problems.append(Problem(str(self.path), int(unexpected[0]), rule, step))
        return problems


def read_sequence_table(folder: Path, stem: str, num_items: int) -> SequenceTable:
    """Read ``stem.df`` (through the restricted unpickler) or, where that is missing, ``stem.csv``.

    ``seq`` may be a list or its text; ids may be integers, floats (``4881.0``), text, or (id, rating) pairs. Published
    files write an empty history as nothing but padding (``num_items``) with a ``len_seq`` of 1; its length is 0 here.
    Raises ``DataError`` that names the file and the rows.

    Args:
        folder: where it lies.
        stem: its name without an ending.
        num_items: V.
    """
    pickled, text = folder / f"{stem}.df", folder / f"{stem}.csv"
    lines: tuple[int, ...] | None
    if pickled.exists():
        path, columns, lines = pickled, read_pickled_table(pickled), None
    else:
        path = text
        columns, lines = _read_csv(text, f"put {stem}.df or {stem}.csv into {folder}")
    if missing := [name for name in _COLUMNS if name not in columns]:
        raise DataError.one(f"{path} columns", missing, "are missing", f"the columns must be {', '.join(_COLUMNS)}")
    table = _build(path, columns, lines)
    blank = ((table.cells == num_items) | ~table.real).all(axis=1)
    return replace(table, length=np.where(blank, 0, table.length))


def read_columns(folder: Path, stem: str) -> Columns:
    """A small table (``stem.df`` or ``stem.csv``) as columns."""
    pickled = folder / f"{stem}.df"
    if pickled.exists():
        return read_pickled_table(pickled)
    return _read_csv(folder / f"{stem}.csv", f"put {stem}.df or {stem}.csv into {folder}")[0]


def _read_csv(path: Path, next_step: str) -> tuple[Columns, tuple[int, ...]]:
    # a history of thousands of items is longer than the 131,072 characters that csv allows a field
    before = csv.field_size_limit(sys.maxsize)
    try:
        return _parse_csv(path, read_text(path, next_step=next_step))
    except csv.Error as error:
        raise DataError.one("file", str(path), f"is no CSV ({error})", "save the table again") from None
    finally:
        csv.field_size_limit(before)


def _parse_csv(path: Path, text: str) -> tuple[Columns, tuple[int, ...]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    header = next(reader, None)
    if not header:
        raise DataError.one(f"{path} line 1", "", "must be the header", f"for example {','.join(_COLUMNS)}")
    rows, lines, problems = [], [], []
    for row in reader:
        if len(row) != len(header):
            rule = f"has {len(row)} fields, must have {len(header)}"
            problems.append(Problem(f"{path} line {reader.line_num}", ",".join(row)[:60], rule))
        rows.append(row)
        lines.append(reader.line_num)
    if problems:
        raise DataError(limited(problems, str(path)))
    return {name: [row[place] for row in rows] for place, name in enumerate(header)}, tuple(lines)


def _where(path: Path, lines: Sequence[int] | None, row: int) -> str:
    return f"{path} row {row}" if lines is None else f"{path} line {lines[row]}"


def _build(path: Path, columns: Columns, lines: tuple[int, ...] | None) -> SequenceTable:
    problems: list[Problem] = []

    def convert(name: str, function: Callable[[Any], Any], fallback: Any, rule: str) -> list[Any]:
        found, wrong = [], []
        for row, value in enumerate(columns[name]):
            try:
                found.append(function(value))
            except (ValueError, TypeError, SyntaxError, IndexError, OverflowError, RecursionError, MemoryError):
                found.append(fallback)
                wrong.append(Problem(f"{_where(path, lines, row)} {name}", str(value)[:60], rule))
        problems.extend(limited(wrong, f"{path} {name}"))
        return found

    histories = convert("seq", _ids, None, "must be a list of item ids")
    lengths = convert("len_seq", _id, 0, "must be a whole number")
    targets = convert("next", lambda value: _id(_literal(value)), 0, "must be an item id")
    too_long = [
        Problem(f"{_where(path, lines, row)} len_seq", length, f"is outside 0..{len(history)}, the length of seq")
        for row, (history, length) in enumerate(zip(histories, lengths, strict=True))
        if history is not None and not 0 <= length <= len(history)
    ]
    problems += limited(too_long, f"{path} len_seq")
    if problems:
        raise DataError(problems)
    width = max(map(len, histories), default=0)
    cells = np.full((len(histories), width), NO_ID, dtype=np.int64)
    for row, history in enumerate(histories):
        cells[row, : len(history)] = history
    return SequenceTable(path, cells, np.array(lengths, np.int64), np.array(targets, np.int64), lines)


def _literal(value: Any) -> Any:
    """Text as the value that it writes; JSON's reader is tried first because it is fast."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return ast.literal_eval(value)


def _id(value: Any) -> int:
    """A whole number from an int, a float, text in either notation, or an (id, rating) pair."""
    if isinstance(value, (tuple, list)):
        return _id(value[0])
    number = value if isinstance(value, int) and not isinstance(value, bool) else float(value)
    if number != int(number) or abs(number) > _LARGEST:
        raise ValueError(f"{value} is no whole number that an id can be")
    return int(number)


def _ids(value: Any) -> list[int]:
    cells = _literal(value)
    if not isinstance(cells, (list, tuple)):
        raise TypeError("not a list")
    return [_id(cell) for cell in cells]
