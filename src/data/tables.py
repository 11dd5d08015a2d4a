"""Tables as people have them: CSV, TSV, Parquet or JSON Lines, compressed or not, one file, a folder, or in memory.

Reading is pyarrow's: columns come as Arrow arrays, ids as dictionaries, so that a log of many million rows costs no
Python object a field. Only what is wrong in a file is looked for line by line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

from src.core.errors import DataError, Problem, first_line
from src.data.arrow_columns import as_ids, plain_text
from src.data.compressed_files import COMPRESSED, find, guarded, head, starts_with
from src.data.delimited import limited, what_is_there
from src.data.json_lines import JsonLines
from src.data.text_file import TextFile, TextForm

_ENDINGS = {
    ".parquet": "parquet", ".pq": "parquet", ".feather": "arrow", ".arrow": "arrow",
    ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".csv": "text", ".tsv": "text", ".txt": "text", ".dat": "text", ".data": "text", ".inter": "text", ".item": "text",
    ".tab": "text",
}  # fmt: skip


class Table(Protocol):
    """Columns of a table, wherever it lies."""

    @property
    def label(self) -> str:
        """How messages call it."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Its columns."""
        ...

    def read(self, ids: Sequence[str], values: Sequence[str]) -> pa.Table:
        """These columns: ``ids`` dictionary-encoded text, ``values`` as they are (text where the file is text)."""
        ...

    def where(self, row: int) -> str:
        """A row as a person finds it: file and line."""
        ...


@dataclass(frozen=True, eq=False)
class MemoryTable:
    """A table that is in memory already."""

    label: str
    table: pa.Table

    @property
    def names(self) -> tuple[str, ...]:
        """Its columns."""
        return tuple(map(str, self.table.column_names))

    def read(self, ids: Sequence[str], values: Sequence[str]) -> pa.Table:
        """As `Table.read`."""
        columns = {name: as_ids(self.table.column(name)) for name in ids}
        columns |= {name: self.table.column(name) for name in values if name not in columns}
        return pa.table(columns)

    def where(self, row: int) -> str:
        """Row number, counted from 0 as data frames do."""
        return f"{self.label} row {row}"


def from_memory(label: str, table: Any) -> MemoryTable:
    """A pandas, polars or pyarrow table (or anything that pyarrow takes as one).

    Raises ``DataError`` for another type, and for columns whose values pyarrow cannot hold.
    """
    if isinstance(table, pa.Table):
        return MemoryTable(label, table)
    try:
        if hasattr(table, "collect_schema") and hasattr(table, "lazy"):  # polars: a lazy frame is computed here
            table = table.lazy().collect()
        if hasattr(table, "to_arrow"):
            return MemoryTable(label, pa.table(table.to_arrow()))
        if isinstance(table, pd.DataFrame):
            return MemoryTable(label, _from_pandas(label, table))
        return MemoryTable(label, pa.table(table))
    except (pa.ArrowException, TypeError, ValueError, AttributeError, OverflowError) as error:
        rule = f"cannot be read as a table ({first_line(error, most=200)})"
        step = "pass a pandas, polars or pyarrow table with one type a column"
        raise DataError.one(label, type(table).__name__, rule, step) from None


def _from_pandas(label: str, frame: pd.DataFrame) -> pa.Table:
    """A data frame; columns of mixed objects, and of numbers beyond 64 bits, as text: ids may be of any type."""
    if (twice := frame.columns[frame.columns.duplicated()]).size:
        raise DataError.one(f"{label} columns", str(twice[0]), "stands there twice", "keep one")
    periods = [name for name in frame.columns if isinstance(frame[name].dtype, pd.PeriodDtype)]
    frame = frame.assign(**{name: frame[name].dt.to_timestamp() for name in periods}) if periods else frame
    objects = [name for name in frame.columns if frame[name].dtype == object]
    mixed = [name for name in objects if frame[name].map(type).nunique() > 1]
    plain = frame.assign(**{name: frame[name].map(_plain_or_missing) for name in mixed}) if mixed else frame
    try:
        return pa.Table.from_pandas(plain, preserve_index=False)
    except (pa.ArrowException, OverflowError):
        text = {name: frame[name].map(_plain_or_missing) for name in objects}
        return pa.Table.from_pandas(frame.assign(**text), preserve_index=False)


def _plain_or_missing(value: Any) -> str | None:
    return (
        None if value is None or (isinstance(value, float) and value != value) or value is pd.NA else plain_text(value)
    )


def is_table(path: Path) -> bool:
    """Whether a file's name is that of a table."""
    return _kind(path) is not None and not path.name.startswith(".")


def files_of(path: Path) -> list[Path]:
    """The files that `open_table` reads for a path, in their order; none where nothing is there."""
    found = find(path)
    if found is None:
        return []
    if not found.is_dir():
        return [found]
    return sorted(part for part in found.rglob("*") if part.is_file() and is_table(part))


def _kind(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return _ENDINGS.get(suffixes[-1]) if suffixes else None


def open_table(path: Path, form: TextForm | None = None) -> Table:
    """A file or a folder of files with equal columns.

    Raises ``DataError`` where there is nothing to read, and for files whose first lines tell no columns.
    """
    form = form or TextForm()
    found = find(path)
    if found is None:
        raise DataError.one("file", str(path), "is missing", what_is_there(path))
    if not found.is_dir():
        return _open_file(found, form)
    files = files_of(found)
    if not files:
        kinds = ", ".join(_ENDINGS)
        raise DataError.one("folder", str(found), "holds no table", f"put files ending in {kinds} there")
    tables = tuple(_open_file(part, form) for part in files)
    problems = [
        Problem(table.label, list(table.names), f"must have the columns of {files[0].name}: {list(tables[0].names)}")
        for table in tables[1:]
        if set(table.names) != set(tables[0].names)
    ]
    if problems:
        raise DataError(limited(problems, str(found)))
    return tables[0] if len(tables) == 1 else Folder(found, tables)


def _open_file(path: Path, form: TextForm) -> Table:
    kind = _kind(path) or ("parquet" if starts_with(path, b"PAR1") else "text")
    if kind == "parquet":
        return _ParquetFile.open(path)
    if kind == "arrow":
        return from_memory(str(path), guarded(path, lambda: pyarrow.feather.read_table(path)))
    if kind == "json" or (kind == "text" and head(path).lstrip()[:2] in (b'{"', b"{'")):
        return JsonLines.open(path)
    return TextFile.open(path, form)


@dataclass(frozen=True, eq=False)
class _ParquetFile:
    path: Path
    names: tuple[str, ...]

    @property
    def label(self) -> str:
        """The path."""
        return str(self.path)

    @classmethod
    def open(cls, path: Path) -> _ParquetFile:
        return cls(path, tuple(guarded(path, lambda: pyarrow.parquet.read_schema(path)).names))

    def read(self, ids: Sequence[str], values: Sequence[str]) -> pa.Table:
        """As `Table.read`."""
        wanted = list(dict.fromkeys([*ids, *values]))
        table = guarded(self.path, lambda: pyarrow.parquet.read_table(self.path, columns=wanted, partitioning=None))
        return MemoryTable(self.label, table).read(ids, values)

    def where(self, row: int) -> str:
        """File and row, counted from 0."""
        return f"{self.path} row {row}"


@dataclass(frozen=True, eq=False)
class Folder:
    """Files with equal columns, one after the other in the order of their names."""

    path: Path
    parts: tuple[Table, ...]

    @property
    def label(self) -> str:
        """The folder."""
        return str(self.path)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of its first file, which are those of all."""
        return self.parts[0].names

    def read(self, ids: Sequence[str], values: Sequence[str]) -> pa.Table:
        """The files one after the other, in the order of their names."""
        tables = [part.read(ids, values) for part in self.parts]
        return pa.concat_tables(tables, promote_options="permissive").unify_dictionaries()

    def where(self, row: int) -> str:
        """File and line of a row."""
        for part in self.parts:
            rows = part.read((), part.names[:1]).num_rows
            if row < rows:
                return part.where(row)
            row -= rows
        return self.label
