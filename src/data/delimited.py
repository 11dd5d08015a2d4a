"""Text files of separated fields, read whole, with line numbers for whatever is wrong in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from src.core.errors import DataError, Problem

#: Problems of one kind that a message lists; the rest are counted.
SHOWN = 5


def read_text(path: Path, encoding: str = "utf-8-sig", next_step: str = "") -> str:
    """A file's text; raises ``DataError`` when it is missing, unreadable or in another encoding (with the line)."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError.one("file", str(path), "is missing", next_step or _what_is_there(path)) from None
    except OSError as error:
        raise DataError.one("file", str(path), f"cannot be read ({error.strerror})", "check the path") from None
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        rule = f"is not {encoding.removesuffix('-sig')} text"
        raise DataError.one(f"{path} line {line}", content[error.start : error.start + 8], rule) from None


def _what_is_there(path: Path) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist: check dataset.root and dataset.name"
    found = sorted(entry.name for entry in path.parent.iterdir())[:8]
    return f"check dataset.root and dataset.name; the folder holds {', '.join(found) or 'nothing'}"


def limited(problems: Sequence[Problem], what: str) -> list[Problem]:
    """The first `SHOWN` problems, and a line that counts the others."""
    rest = len(problems) - SHOWN
    more = [Problem(what, f"{rest} more", "of the same kind")] if rest > 0 else []
    return [*problems[:SHOWN], *more]


@dataclass(frozen=True, eq=False)
class DelimitedFile:
    """Rows of equally many fields. ``columns[j][i]`` is field j of row i, ``first_line`` the line number of row 0."""

    path: Path
    columns: tuple[list[str], ...]
    first_line: int

    def __len__(self) -> int:
        return len(self.columns[0]) if self.columns else 0

    def problem(self, row: int, value: object, rule: str, next_step: str = "") -> Problem:
        """A problem that names file and line."""
        return Problem(f"{self.path} line {self.first_line + row}", value, rule, next_step)

    def numbers(self, column: int, name: str) -> tuple[NDArray[np.float64], list[Problem]]:
        """A column as ``[N]`` float64, and what is not a finite number in it."""
        values = pd.to_numeric(pd.Series(self.columns[column], dtype=object), errors="coerce").to_numpy(np.float64)
        bad = np.flatnonzero(~np.isfinite(values))
        rule = f"{name} must be a finite number"
        problems = [self.problem(int(row), self.columns[column][row], rule) for row in bad]
        return values, limited(problems, f"{self.path} {name}")

    def codes(self, column: int, name: str) -> tuple[NDArray[np.int64], list[str], list[Problem]]:
        """A column of tokens as ``[N]`` codes in order of first appearance, the tokens, and the empty places."""
        codes, tokens = pd.factorize(np.array(self.columns[column], dtype=object))
        kept = [str(token) for token in tokens]
        bad = np.flatnonzero(codes == kept.index("")) if "" in kept else codes[:0]
        problems = [self.problem(int(row), "", f"{name} must not be empty") for row in bad]
        return codes.astype(np.int64), kept, limited(problems, f"{self.path} {name}")


def parse_delimited(path: Path, text: str, separator: str, fields: int, skip: int = 0) -> DelimitedFile:
    """Split text into rows of exactly ``fields`` fields, after ``skip`` header lines.

    Raises ``DataError`` that names the malformed lines.
    """
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")[skip:]
    if lines == [""]:
        lines = []
    counts = [line.count(separator) + 1 for line in lines]
    wrong = [
        Problem(f"{path} line {skip + 1 + row}", lines[row][:60], f"has {count} fields, must have {fields}")
        for row, count in enumerate(counts)
        if count != fields
    ]
    if wrong:
        raise DataError(limited(wrong, str(path)))
    cells: list[Any] = separator.join(lines).split(separator) if lines else []
    return DelimitedFile(path, tuple(cells[column::fields] for column in range(fields)), skip + 1)
