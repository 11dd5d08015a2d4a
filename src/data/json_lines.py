"""JSON Lines as a table: an object a line, in JSON's or in Python's notation, or a list of objects."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from src.core.errors import DataError, first_line
from src.data.arrow_columns import IDS, as_ids_or_text, plain_text
from src.data.compressed_files import DAMAGE, readable, stream, text_of

_JSON_ROWS = 50_000


@dataclass(frozen=True, eq=False)
class JsonLines:
    """One JSON object a line (Python's own notation, which some data sets have, is read as well), or a list of them."""

    path: Path
    names: tuple[str, ...]

    @property
    def label(self) -> str:
        """The path."""
        return str(self.path)

    @classmethod
    def open(cls, path: Path) -> JsonLines:
        names: dict[str, None] = {}
        for number, (_, row) in enumerate(json_rows(path)):
            names.update(dict.fromkeys(map(str, row)))
            if number >= 200:
                break
        if not names:
            raise DataError.one("file", str(path), "holds no objects", "each line must be a JSON object")
        return cls(path, tuple(names))

    def read(self, ids: Sequence[str], values: Sequence[str]) -> pa.Table:
        """As `Table.read`; every value is text, null where an object lacks the field."""
        wanted = list(dict.fromkeys([*ids, *values]))
        types = {name: IDS if name in ids else pa.string() for name in wanted}
        tables: list[pa.Table] = []
        rows: dict[str, list[str | None]] = {name: [] for name in wanted}
        for _, row in json_rows(self.path):
            for name in wanted:
                rows[name].append(plain_text(row.get(name)))
            if len(rows[wanted[0]]) >= _JSON_ROWS:
                tables.append(_block(rows, types))
                rows = {name: [] for name in wanted}
        tables.append(_block(rows, types))
        return pa.concat_tables(tables).unify_dictionaries()

    def where(self, row: int) -> str:
        """File and line."""
        return f"{self.path} line {next(line for n, (line, _) in enumerate(json_rows(self.path)) if n == row)}"


def _block(rows: dict[str, list[str | None]], types: dict[str, pa.DataType]) -> pa.Table:
    return pa.table({name: as_ids_or_text(pa.array(rows[name], pa.string()), types[name]) for name in types})


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line that is not blank; an entry's number where the file is one list.

    Raises:
        DataError: the file cannot be read, or a line is no object.
    """
    try:
        with stream(path) as raw:
            start = raw.read(64).lstrip()
        if start.startswith(b"["):
            yield from _json_list(path)
            return
        with stream(path) as raw:
            for line, text in enumerate(cast(Any, readable(raw)), start=1):
                if text.strip():
                    yield line, _json_object(path, line, text)
    except DAMAGE as error:
        raise DataError.one(
            "file", str(path), f"cannot be read ({first_line(error, most=200)})", "is the file whole?"
        ) from None


def _json_list(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        content = json.loads(text_of(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError.one(str(path), first_line(error, most=200), "must be JSON") from None
    for number, row in enumerate(content, start=1):
        if not isinstance(row, dict):
            raise DataError.one(f"{path} entry {number}", str(row)[:60], "must be an object {field: value}")
        yield number, row


def _json_object(path: Path, line: int, text: bytes) -> dict[str, Any]:
    try:
        try:
            row = json.loads(text)
        except json.JSONDecodeError:
            row = ast.literal_eval(text.decode("utf-8"))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        shown = text[:60].decode("utf-8", "replace")
        raise DataError.one(f"{path} line {line}", shown, "must be a JSON object") from None
    if not isinstance(row, dict):
        raise DataError.one(f"{path} line {line}", str(row)[:60], "must be a JSON object")
    return row
