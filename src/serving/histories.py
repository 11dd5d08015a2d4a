"""Files of histories, read batch by batch: a row a user, or a log with a row an interaction."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as settings_dataclass

from src.core.errors import ConfigError, DataError
from src.core.logging import get_logger
from src.core.settings import STRICT
from src.data.columns import guess
from src.data.compressed_files import stream
from src.data.id_map import raw_text
from src.data.json_lines import json_rows
from src.data.timestamps import read_times
from src.serving.catalogue import Catalogue

_log = get_logger(__name__)

PARQUET, CSV, LINES = "Parquet", "CSV", "JSON Lines"
_SUFFIXES = {
    ".parquet": PARQUET, ".pq": PARQUET, ".csv": CSV, ".tsv": CSV, ".jsonl": LINES, ".ndjson": LINES,
}  # fmt: skip


@settings_dataclass(frozen=True, config=STRICT)
class HistoryColumns:
    """What the columns of the file are called. A file with a history column has a row a user, any other is a log.

    Where nobody says so and no column has that name, the only one that is known as a user, an item or a time is taken.
    """

    user: Annotated[str, Field(min_length=1, description="who it is")] = "user"
    history: Annotated[
        str, Field(min_length=1, description="the items, oldest first: a list, or text with spaces between the ids")
    ] = "history"
    item: Annotated[str, Field(min_length=1, description="of a log: the item")] = "item"
    time: Annotated[
        str, Field(min_length=1, description="of a log: when; without such a column the order of the rows counts")
    ] = "time"


@dataclass(frozen=True, eq=False)
class HistoryBatch:
    """Some users with their histories.

    ``users`` ``[N]`` text; ``items`` ``[T]`` int64, the histories one after the other, -1 where the catalogue does not
    know an item; ``lengths`` ``[N]`` int64; ``unknown``: the first unknown id, if there is one.
    """

    users: list[str]
    items: NDArray[np.int64]
    lengths: NDArray[np.int64]
    unknown: str | None


def _column_of(role: str, columns: HistoryColumns, names: Sequence[str]) -> str | None:
    """The column of a role: as it is called, or, where nobody named one, the only one that is known as that."""
    named: str = getattr(columns, role)
    if named in names:
        return named
    return guess(role, names) if named == getattr(HistoryColumns, role) else None


def format_of(path: Path, field: str, allowed: Iterable[str] = (PARQUET, CSV, LINES)) -> str:
    """The format that a file's suffix names.

    Args:
        path: the file.
        field: what an error calls it.
        allowed: the formats that are read or written there.

    Raises:
        ConfigError: it is none of these.
    """
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    found = _SUFFIXES.get(suffixes[-1].lower()) if suffixes else None
    if found is None or found not in set(allowed):
        known = ", ".join(suffix for suffix, name in _SUFFIXES.items() if name in set(allowed))
        raise ConfigError.one(field, str(path), "has no suffix that tells its format", f"use one of {known}")
    return found


@dataclass(frozen=True, eq=False)
class _Log:
    """A log that was read: ``names`` ``[N]`` of the users as they first appear, ``items`` ``[T]`` int64 user by user,
    oldest first (-1: unknown), ``sizes`` ``[N]``; ``unknown``: the first unknown id, if there is one.
    """

    names: pa.Array
    items: NDArray[np.int64]
    sizes: NDArray[np.int64]
    unknown: str | None


@dataclass(frozen=True, eq=False)
class HistoryFile:
    """A file whose columns were found to be there. ``log``: what `opened` read of a log."""

    path: Path
    format: str
    columns: HistoryColumns
    is_log: bool
    has_time: bool
    log: _Log | None = None

    @classmethod
    def open(cls, path: Path, columns: HistoryColumns) -> HistoryFile:
        """Look at a file's columns.

        Raises:
            ConfigError: an unknown suffix, or columns that are not there.
            DataError: the file is missing or cannot be read.
        """
        kind = format_of(path, "histories")
        names = _column_names(path, kind)
        is_log = columns.history not in names
        found = {"history": columns.history}
        for role in ("user", "item", "time") if is_log else ("user",):
            column = _column_of(role, columns, names)
            if column is not None:
                found[role] = column
            elif role != "time" or columns.time != HistoryColumns.time:
                more = f", and no column {columns.history!r} (columns.history) either" if role == "item" else ""
                step = f"columns.{role}=NAME with one of {', '.join(names)}"
                rule = f"is no column of {path.name}{more}"
                raise ConfigError.one(f"columns.{role}", getattr(columns, role), rule, step)
        guessed = {role: name for role, name in found.items() if name != getattr(columns, role)}
        if guessed:
            told = ", ".join(f"{role} = {name}" for role, name in guessed.items())
            _log.info("%s: %s (columns.%s=NAME names another)", path, told, next(iter(guessed)))
        if is_log and "time" not in found:
            _log.info("%s: no column is known as a time, so the order of its rows counts (columns.time=NAME)", path)
        return cls(path, kind, replace(columns, **found), is_log, "time" in found)

    def opened(self, catalogue: Catalogue) -> HistoryFile:
        """The same file; a log is read now, and what is wrong with it is told before anything is written.

        Raises:
            DataError: a row of a log cannot be read.
        """
        if not self.is_log:
            return self
        with self._reading():
            return replace(self, log=self._read_log(catalogue))

    def users(self) -> int | None:
        """How many users there are; None for a log that was not read yet."""
        if self.is_log:
            return None if self.log is None else len(self.log.sizes)
        if self.format == PARQUET:
            return int(pq.ParquetFile(self.path).metadata.num_rows)
        with stream(self.path) as handle:
            lines = sum(chunk.count(b"\n") for chunk in iter(lambda: handle.read(1 << 20), b""))
        return lines - (self.format == CSV)

    def batches(self, catalogue: Catalogue, rows: int) -> Iterator[HistoryBatch]:
        """The file's users in order (of a log: in the order in which they first appear), at most ``rows`` at once.

        Raises:
            DataError: a row cannot be read.
        """
        if self.is_log:
            yield from self._users_of(self.log or self.opened(catalogue).log, rows)
            return
        with self._reading():
            yield from self._rows(catalogue, rows)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError, EOFError) as error:
            raise DataError.one("histories", str(self.path), f"cannot be read: {error}", "mend the file") from None

    def _rows(self, catalogue: Catalogue, rows: int) -> Iterator[HistoryBatch]:
        user, history = self.columns.user, self.columns.history
        for table in self._tables((user, history), rows):
            lists = _lists(table[history], self.path)
            items, unknown = _indices(lists.flatten(), catalogue)
            lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
            users = _text(table[user])
            self._refuse_nameless(int(pc.sum(pc.equal(users, "")).as_py() or 0), user)
            yield HistoryBatch(users.to_pylist(), items, lengths.astype(np.int64), unknown)

    def _refuse_nameless(self, rows: int, column: str) -> None:
        if rows:
            rule = f"{column} is empty in {rows:,} rows: nobody could be told whose recommendations they are"
            raise DataError.one(f"{self.path.name}: columns.user", "", rule, "mend these rows, or name another column")

    def _read_log(self, catalogue: Catalogue) -> _Log:
        """A log must be known as a whole before the first user is: ids become numbers while it is read."""
        columns = self.columns
        names = (columns.user, columns.item, *((columns.time,) if self.has_time else ()))
        users, items, times = [], [], []
        unknown: str | None = None
        for table in self._tables(names, 1 << 18):
            text = _text(table[columns.item])
            found, missing = _indices(text, catalogue)
            unknown = missing if unknown is None else unknown
            users.append(_text(table[columns.user]))
            items.append(found)
            if self.has_time:
                times += table[columns.time].chunks
        if not users:
            return _Log(pa.array([], pa.string()), np.empty(0, np.int64), np.empty(0, np.int64), None)
        names_of = pa.chunked_array(users).combine_chunks().dictionary_encode()
        if isinstance(names_of, pa.ChunkedArray):
            names_of = names_of.combine_chunks()
        owner = names_of.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        nameless = pc.index(names_of.dictionary, "").as_py()
        self._refuse_nameless(int((owner == nameless).sum()), columns.user)
        keys: tuple[NDArray[np.generic], ...] = (owner,)
        if self.has_time:  # the notation of dates is what fits the whole column
            named = f"{self.path.name}: columns.time = {columns.time}"
            seconds = read_times(pa.chunked_array(times), named, lambda row: f"row {row + 1}").seconds
            keys = (seconds, owner)
        order = np.lexsort(keys)
        return _Log(names_of.dictionary, np.concatenate(items)[order], np.bincount(owner), unknown)

    @staticmethod
    def _users_of(log: _Log | None, rows: int) -> Iterator[HistoryBatch]:
        assert log is not None
        ends = np.cumsum(log.sizes)
        for start in range(0, len(log.sizes), rows):
            stop = min(start + rows, len(log.sizes))
            part = log.items[ends[start] - log.sizes[start] : ends[stop - 1]]
            own = log.unknown if (part < 0).any() else None
            yield HistoryBatch(log.names[start:stop].to_pylist(), part, log.sizes[start:stop], own)

    def _tables(self, names: tuple[str, ...], rows: int) -> Iterator[pa.Table]:
        """The file's rows as tables of these columns."""
        if self.format == PARQUET:
            for batch in pq.ParquetFile(self.path).iter_batches(rows, columns=list(names)):
                yield pa.Table.from_batches([batch])
        elif self.format == CSV:
            as_text = {name: pa.string() for name in names}
            convert = pa.csv.ConvertOptions(include_columns=list(names), column_types=as_text, strings_can_be_null=True)
            with pa.csv.open_csv(self.path, parse_options=_parse(self.path), convert_options=convert) as reader:
                for batch in reader:
                    table = pa.Table.from_batches([batch])
                    yield from (table.slice(start, rows) for start in range(0, len(table), rows))
        else:
            yield from _line_tables(self.path, names, rows)


# --------------------------------------------------------------------------------------------------------- formats


def _parse(path: Path) -> pa.csv.ParseOptions:
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    return pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)


def _column_names(path: Path, kind: str) -> list[str]:
    try:
        if kind == PARQUET:
            return list(pq.read_schema(path).names)
        if kind == CSV:
            with pa.csv.open_csv(path, parse_options=_parse(path)) as reader:
                return list(reader.schema.names)
        for _, line in json_rows(path):
            return list(line)
    except FileNotFoundError:
        raise DataError.one("histories", str(path), "does not exist", "name a file of histories") from None
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:  # a heading that is no UTF-8
        raise DataError.one("histories", str(path), f"cannot be read: {error}", f"is it {kind}?") from None
    raise DataError.one("histories", str(path), "holds no line", "name a file of histories")


def _short(value: object) -> str:
    return str(value)[:60]


def _line_tables(path: Path, names: tuple[str, ...], rows: int) -> Iterator[pa.Table]:
    lines = json_rows(path)
    while found := list(itertools.islice(lines, rows)):
        columns: dict[str, pa.Array] = {}
        for name in names:
            values = [line.get(name) for _, line in found]
            if any(isinstance(value, list) for value in values):
                columns[name] = pa.array([_raw_list(value) for value in values], pa.list_(pa.string()))
            else:
                columns[name] = pa.array([None if value is None else raw_text(value) for value in values], pa.string())
        yield pa.table(columns)


def _raw_list(value: object) -> list[str] | None:
    if value is None:
        return None
    return [raw_text(part) for part in (value if isinstance(value, list) else [value])]


# ---------------------------------------------------------------------------------------------------------- values


def _text(column: pa.ChunkedArray) -> pa.Array:
    """A column as text, as the id map spells ids; a null is an empty text."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(whole, pa.ChunkedArray):  # no chunk at all, or too much text for one
        whole = pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], pa.string())
    return pc.fill_null(_as_text(whole), "")


def _as_text(values: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_floating(values.type):
        return pa.array([None if value is None else raw_text(value) for value in values.to_pylist()], pa.string())
    return values if pa.types.is_string(values.type) else values.cast(pa.string())


def _lists(column: pa.ChunkedArray, path: Path) -> pa.Array:
    """A column of histories as lists of text."""
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], pa.list_(pa.string()))
    if pa.types.is_fixed_size_list(whole.type):  # the rows of an array
        whole = whole.cast(pa.list_(whole.type.value_type))
    if pa.types.is_list(whole.type) or pa.types.is_large_list(whole.type):
        return whole
    return pa.array([_parsed(text, path) for text in _text(whole).to_pylist()], pa.list_(pa.string()))


def _parsed(text: str, path: Path) -> list[str]:
    """``[1, 2]`` as JSON writes it, or ids with spaces between them."""
    if not text.lstrip().startswith("["):
        return text.split()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        step = "write [1, 2], or ids with spaces between them"
        raise DataError.one("history", _short(text), f"a history of {path.name} is no list ({error})", step) from None
    return [raw_text(part) for part in found]


def _indices(values: pa.Array, catalogue: Catalogue) -> tuple[NDArray[np.int64], str | None]:
    """The indices ``[T]`` int64 of raw ids, -1 where there is none, and the first id that is unknown."""
    text = _text(values)
    found = pc.fill_null(pc.index_in(text, value_set=catalogue.raw_ids), -1).to_numpy(zero_copy_only=False)
    missing = np.flatnonzero(found < 0)
    return found.astype(np.int64), text[int(missing[0])].as_py() if len(missing) else None
