"""Tables as people have them: CSV, TSV, Parquet or JSON Lines, compressed or not, one file, a folder, or in memory.

Reading is pyarrow's: columns come as Arrow arrays, ids as dictionaries, so that a log of many million rows costs no
Python object a field. Only what is wrong in a file is looked for line by line.
"""

from __future__ import annotations

import ast
import bz2
import gzip
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Protocol, cast

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from src.core.errors import DataError, Problem
from src.data.delimited import SHOWN, limited, not_text, split_records, what_is_there

#: Arrow's type of a column of ids: each distinct text once, and a number a row.
IDS = pa.dictionary(pa.int32(), pa.string())

_BLOCK = 8 << 20
_HEAD = 1 << 16
_JSON_ROWS = 50_000
#: bytes from which a text file is searched a few lines at a time
_LARGE = 256 << 20
#: lines that one quoted field may have where a large file is searched
_QUOTED_LINES = 1_000
#: RecBole's headers say ``user_id:token``
_RECBOLE_TYPE = re.compile(r":(token|token_seq|float|float_seq)$")
_SEPARATORS = ("\t", ",", ";", "|")
_ENDINGS = {
    ".parquet": "parquet", ".pq": "parquet", ".feather": "arrow", ".arrow": "arrow",
    ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".csv": "text", ".tsv": "text", ".txt": "text", ".dat": "text", ".data": "text", ".inter": "text", ".item": "text",
    ".tab": "text",
}  # fmt: skip
#: What a file that is not whole makes its readers raise.
_DAMAGE = (pa.ArrowException, OSError, EOFError, lzma.LZMAError, zlib.error)
_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4", ".xz")
_MAGIC = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zst", b"\x04\x22\x4d\x18": "lz4", b"\xfd7zXZ": "xz"}


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


def as_ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of any type as dictionary-encoded text; null where there is nothing."""
    if column.type == IDS:
        return column
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    if pa.types.is_nested(column.type) or pa.types.is_string_view(column.type) or _is_extension(column.type):
        column = pa.chunked_array([_texts(chunk) for chunk in column.chunks], type=pa.string())
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    chunks = [
        pa.DictionaryArray.from_arrays(chunk.indices.cast(pa.int32()), _texts(chunk.dictionary))
        for chunk in encoded.chunks
    ]
    return pa.chunked_array(chunks, type=IDS)


def _is_extension(kind: pa.DataType) -> bool:
    """Whether a type is one that pyarrow has no functions for (uuid and the like)."""
    return isinstance(kind, pa.BaseExtensionType)


def _texts(values: pa.Array) -> pa.Array:
    if pa.types.is_nested(values.type) or pa.types.is_binary(values.type) or _is_extension(values.type):
        return pa.array([_plain(value) for value in values.to_pylist()], pa.string())
    return values.cast(pa.string())


def _plain(value: Any) -> str | None:
    """A JSON or Python value as text: lists as their parts with commas between, nothing as None."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (list, tuple)):
        return ", ".join(part for entry in value if (part := _plain(entry)))
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


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
        if hasattr(table, "to_arrow"):
            return MemoryTable(label, table.to_arrow())
        if isinstance(table, pd.DataFrame):
            return MemoryTable(label, _from_pandas(label, table))
        return MemoryTable(label, pa.table(table))
    except (pa.ArrowException, TypeError, ValueError, AttributeError, OverflowError) as error:
        rule = f"cannot be read as a table ({_first_line(error)})"
        step = "pass a pandas, polars or pyarrow table with one type a column"
        raise DataError.one(label, type(table).__name__, rule, step) from None


def _from_pandas(label: str, frame: pd.DataFrame) -> pa.Table:
    """A data frame; columns of mixed objects, and of numbers beyond 64 bits, as text: ids may be of any type."""
    if (twice := frame.columns[frame.columns.duplicated()]).size:
        raise DataError.one(f"{label} columns", str(twice[0]), "stands there twice", "keep one")
    objects = [name for name in frame.columns if frame[name].dtype == object]
    mixed = [name for name in objects if frame[name].map(type).nunique() > 1]
    plain = frame.assign(**{name: frame[name].map(_plain_or_missing) for name in mixed}) if mixed else frame
    try:
        return pa.Table.from_pandas(plain, preserve_index=False)
    except (pa.ArrowException, OverflowError):
        text = {name: frame[name].map(_plain_or_missing) for name in objects}
        return pa.Table.from_pandas(frame.assign(**text), preserve_index=False)


def _plain_or_missing(value: Any) -> str | None:
    return None if value is None or (isinstance(value, float) and value != value) or value is pd.NA else _plain(value)


def find(path: Path) -> Path | None:
    """The path as it is, or the same with the ending of a compressed file; None where neither is there."""
    return next((p for p in (path, *(path.with_name(path.name + end) for end in _COMPRESSED)) if p.exists()), None)


def is_table(path: Path) -> bool:
    """Whether a file's name is that of a table."""
    return _kind(path) is not None and not path.name.startswith(".")


def bare_name(path: Path) -> str:
    """A file's name without its endings."""
    name = path.name
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).stem


def _kind(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    return _ENDINGS.get(suffixes[-1]) if suffixes else None


@dataclass(frozen=True)
class TextForm:
    """How a text file is written; None where its first lines tell.

    ``fallback`` is the encoding that is tried where the bytes are no UTF-8 and none was asked for. ``open_field`` is
    the place of a field that may hold the separator itself: what is too much in a line belongs to it.
    """

    separator: str | None = None
    encoding: str | None = None
    header: tuple[str, ...] = ()
    fallback: str | None = None
    open_field: int | None = None


def open_table(path: Path, form: TextForm = TextForm()) -> Table:
    """A file or a folder of files with equal columns.

    Raises ``DataError`` where there is nothing to read, and for files whose first lines tell no columns.
    """
    found = find(path)
    if found is None:
        raise DataError.one("file", str(path), "is missing", what_is_there(path))
    if not found.is_dir():
        return _open_file(found, form)
    files = sorted(part for part in found.rglob("*") if part.is_file() and is_table(part))
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
    return tables[0] if len(tables) == 1 else _Folder(found, tables)


def _open_file(path: Path, form: TextForm) -> Table:
    kind = _kind(path) or ("parquet" if _starts_with(path, b"PAR1") else "text")
    if kind == "parquet":
        return _ParquetFile.open(path)
    if kind == "arrow":
        return from_memory(str(path), _guarded(path, lambda: pyarrow.feather.read_table(path)))
    if kind == "json" or (kind == "text" and _head(path).lstrip()[:2] in (b'{"', b"{'")):
        return _JsonLines.open(path)
    return TextFile.open(path, form)


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as handle:
            return handle.read(len(magic)) == magic
    except OSError as error:
        raise DataError.one("file", str(path), f"cannot be read ({error.strerror})", "check the path") from None


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    """What ``read`` returns; raises ``DataError`` where the file is damaged or cannot be read."""
    try:
        return read()
    except (*_DAMAGE, ValueError, NotImplementedError) as error:
        rule = f"cannot be read ({_first_line(error)})"
        raise DataError.one("file", str(path), rule, "is it whole, and of the format that its name says?") from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def stream(path: Path) -> IO[bytes]:
    """A file's bytes, decompressed by what its first bytes say."""
    with path.open("rb") as handle:
        head = handle.read(6)
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if kind == "gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if kind == "bz2":
        return cast(IO[bytes], bz2.open(path, "rb"))
    if kind == "xz":
        return cast(IO[bytes], lzma.open(path, "rb"))
    if kind is not None:
        return cast(IO[bytes], pa.CompressedInputStream(pa.OSFile(str(path)), {"zst": "zstd"}.get(kind, kind)))
    if head.startswith(b"PK\x03\x04"):
        raise DataError.one("file", str(path), "is a zip archive", "unpack it, and name the file in it")
    return path.open("rb")


def _arrow_stream(path: Path) -> Any:
    """As `stream`, for Arrow: it decompresses by itself what it can."""
    with path.open("rb") as handle:
        head = handle.read(6)
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if kind is None:
        return pa.OSFile(str(path))
    if kind == "xz":
        return pa.PythonFile(lzma.open(path, "rb"), "r")
    return pa.CompressedInputStream(pa.OSFile(str(path)), {"zst": "zstd", "gz": "gzip"}.get(kind, kind))


def _head(path: Path) -> bytes:
    """The first bytes of a file, whole lines of them."""

    def read() -> bytes:
        with stream(path) as handle:
            return handle.read(_HEAD)

    start: bytes = _guarded(path, read)
    end = start.rfind(b"\n")
    return start if len(start) < _HEAD or end < 0 else start[: end + 1]


def text_of(path: Path, encoding: str | None = None, fallback: str | None = None) -> str:
    """A file's text; UTF-8 unless another encoding is asked for, ``fallback`` where its bytes are no UTF-8.

    Raises ``DataError`` that names the line of the first byte that is no text, with the next step.
    """

    def read() -> bytes:
        with stream(path) as handle:
            return handle.read()

    if find(path) is None:
        raise DataError.one("file", str(path), "is missing", what_is_there(path))
    content: bytes = _guarded(path, read)
    wanted = encoding or _marked(content) or "utf-8-sig"
    try:
        return content.decode(wanted)
    except UnicodeDecodeError as error:
        if encoding is None and fallback is not None:
            return content.decode(fallback)
        raise DataError([not_text(path, content, wanted, error)]) from None
    except LookupError:
        raise DataError.one(
            "dataset.encoding", wanted, "is no encoding that Python knows", "for example utf-8"
        ) from None


def _marked(content: bytes) -> str | None:
    """The encoding that a byte-order mark tells of; UTF-8's is read as a rule."""
    return "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else None


@dataclass(frozen=True, eq=False)
class TextFile:
    """Lines of separated fields. ``data_from`` is the number of header lines (0 or 1)."""

    path: Path
    names: tuple[str, ...]
    separator: str
    data_from: int
    encoding: str
    form: TextForm = field(default_factory=TextForm)

    @property
    def label(self) -> str:
        """The path."""
        return str(self.path)

    @classmethod
    def open(cls, path: Path, form: TextForm) -> TextFile:
        """Find separator, encoding and column names from the first lines."""
        start = _head(path)
        encoding = form.encoding or _marked(start) or "utf-8"
        try:
            lines = start.decode("utf-8-sig" if encoding == "utf-8" else encoding, "replace").splitlines()
        except LookupError:
            rule = "is no encoding that Python knows"
            raise DataError.one("dataset.encoding", encoding, rule, "for example iso-8859-1") from None
        first = next((line for line in lines if line.strip()), None)
        if first is None:
            raise DataError.one("file", str(path), "is empty", "the first line must name the columns")
        separator = form.separator or sniff_separator(first)
        fields = split_records(first, separator)[0][1]
        if form.header:
            _require_once(path, form.header)
            if len(fields) != len(form.header) and form.open_field is None:
                rule = f"has {len(fields)} fields, must have {len(form.header)} ({', '.join(form.header[:5])}…)"
                raise DataError.one(f"{path} line 1", first[:60], rule)
            return cls(path, form.header, separator, 0, encoding, form)
        if any(_is_number(value) for value in fields):
            # a log without column names: their places, counted from 1
            return cls(path, tuple(str(place + 1) for place in range(len(fields))), separator, 0, encoding, form)
        names = tuple(_RECBOLE_TYPE.sub("", name.strip()) for name in fields)
        _require_once(path, names)
        return cls(path, names, separator, 1, encoding, form)

    @property
    def unnamed(self) -> bool:
        """Whether the file has no column names and nobody gave any."""
        return self.data_from == 0 and not self.form.header

    def read(self, ids: Sequence[str], values: Sequence[str]) -> pa.Table:
        """As `Table.read`; raises ``DataError`` for lines with too many or few fields and bytes that are no text."""
        wanted = list(dict.fromkeys([*ids, *values]))
        types = {name: IDS if name in ids else pa.string() for name in wanted}
        if len(self.separator) == 1 or self.separator == "::":
            table = self._arrow(types)
            if table is not None:
                return table
        if self.path.stat().st_size > _LARGE:
            self._require_even()
        return self._slow(types)

    def stream(self) -> Iterator[tuple[int, list[str]]]:
        """Every row with its line number, a few lines at a time: how large files are searched for what is wrong."""
        encoding = {"utf-8": "utf-8-sig"}.get(self.encoding, self.encoding)
        rows = 0
        with stream(self.path) as raw:
            lines = enumerate(io.TextIOWrapper(_readable(raw), encoding, errors="replace", newline=""), start=1)
            for number, text in lines:
                more = 0
                opens = text.startswith('"') or f'{self.separator}"' in text
                while opens and text.count('"') % 2 and more < _QUOTED_LINES:
                    following = next(lines, None)
                    if following is None:
                        break
                    text, more = text + following[1], more + 1
                for line, fields in split_records(text, self.separator):
                    if fields != [""]:
                        rows += 1
                        if rows > self.data_from:
                            yield number + line - 1, fields

    def _require_even(self) -> None:
        """Raises ``DataError`` that names the first lines with too many or too few fields, and counts the others."""
        width = len(self.names)
        wrong, count = [], 0
        for line, fields in self.stream():
            if len(fields) != width:
                count += 1
                if count <= SHOWN:
                    rule = f"has {len(fields)} fields, must have {width}"
                    wrong.append(Problem(f"{self.path} line {line}", self.separator.join(fields)[:60], rule))
        if count > SHOWN:
            wrong.append(Problem(str(self.path), f"{count - SHOWN} more", "of the same kind"))
        if wrong:
            raise DataError(wrong)

    def _arrow(self, types: dict[str, pa.DataType]) -> pa.Table | None:
        """Through Arrow; None where its way of reading does not fit the file (`::` within text)."""
        names = self._arrow_names()
        for quoted, lines in self._ways():
            try:
                table = self._parse(types, names, quoted, lines).select(list(types))
            except (pa.ArrowInvalid, UnicodeDecodeError) as error:
                # lines of other lengths, or bytes that are no text: looked for where messages can name the line
                no_text = isinstance(error, UnicodeDecodeError) or "UTF8" in str(error)
                if no_text and self.form.encoding is None and self.form.fallback not in (None, self.encoding):
                    return replace(self, encoding=str(self.form.fallback))._arrow(types)
                continue
            except _DAMAGE as error:
                rule = f"cannot be read ({_first_line(error)})"
                raise DataError.one("file", str(self.path), rule, "is the file whole?") from None
            return table if quoted else pa.table({name: _unquoted(table.column(name)) for name in types})
        return None

    def _ways(self) -> list[tuple[bool, bool]]:
        """How Arrow may read this file, the fastest first: (quotes mean something, a quoted field may have lines).

        Fields of several lines keep Arrow from reading in parallel. Where fields are not separated by commas, a quote
        at a field's beginning is more often a part of it. A quote that never closes would swallow the rest of the file
        without a word, so that a file with one is left to `split_records`, which takes it as a character.
        """
        if self.separator == ",":
            return [(True, False), (True, True)] if self._quotes() % 2 == 0 else []
        large = self.path.stat().st_size > _LARGE
        return [(False, False), (True, True)] if large and self._quotes() % 2 == 0 else [(False, False)]

    def _quotes(self) -> int:
        def count() -> int:
            with stream(self.path) as raw:
                return sum(block.count(b'"') for block in iter(lambda: raw.read(_BLOCK), b""))

        found: int = _guarded(self.path, count)
        return found

    def _arrow_names(self) -> list[str]:
        """Names as Arrow sees them: a separator of two characters is a column of nothing between two of one."""
        if len(self.separator) == 1:
            return list(self.names)
        return [part for place, name in enumerate(self.names) for part in ([f"\0{place}", name] if place else [name])]

    def _parse(self, types: dict[str, pa.DataType], names: list[str], quoted: bool, lines: bool) -> pa.Table:
        utf8 = self.encoding in ("utf-8", "utf-8-sig")
        with _arrow_stream(self.path) as source:
            return pyarrow.csv.read_csv(
                source,
                read_options=pyarrow.csv.ReadOptions(
                    column_names=names,
                    skip_rows=self.data_from,
                    block_size=_BLOCK,
                    encoding="utf8" if utf8 else self.encoding,
                ),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=self.separator[0],
                    quote_char='"' if quoted else False,
                    newlines_in_values=lines,
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=types, include_columns=list(types), strings_can_be_null=False, check_utf8=True
                ),
            ).unify_dictionaries()

    def records(self) -> list[tuple[int, list[str]]]:
        """Every row with its line number, by Python: for small files, and to find what is wrong in large ones."""
        encoding = None if self.encoding == "utf-8" else self.encoding
        rows = split_records(text_of(self.path, encoding, self.form.fallback), self.separator)
        return [(line, self._joined(fields)) for line, fields in rows if fields != [""]][self.data_from :]

    def _joined(self, fields: list[str]) -> list[str]:
        place, more = self.form.open_field, len(fields) - len(self.names)
        if place is None or more <= 0:
            return fields
        return [*fields[:place], self.separator.join(fields[place : place + more + 1]), *fields[place + more + 1 :]]

    def _slow(self, types: dict[str, pa.DataType]) -> pa.Table:
        rows = self.records()
        width = len(self.names)
        wrong = [
            Problem(
                f"{self.path} line {line}",
                self.separator.join(fields)[:60],
                f"has {len(fields)} fields, must have {width}",
            )
            for line, fields in rows
            if len(fields) != width
        ]
        if wrong:
            raise DataError(limited(wrong, str(self.path)))
        places = {name: self.names.index(name) for name in types}
        return pa.table(
            {name: pa.array([row[places[name]] for _, row in rows], pa.string()).cast(types[name]) for name in types}
        )

    def where(self, row: int) -> str:
        """File and line of a row."""
        found = next(itertools.islice(self.stream(), row, None), (row, []))
        return f"{self.path} line {found[0]}"


def _readable(raw: IO[bytes]) -> Any:
    return io.BytesIO(raw.read()) if isinstance(raw, pa.NativeFile) else raw


def _require_once(path: Path, names: Sequence[str]) -> None:
    if repeated := sorted({name for name in names if name and list(names).count(name) > 1}):
        raise DataError.one(f"{path} line 1", repeated[0], "stands in the header twice")


def _unquoted(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values without the quotes that stand around the whole of one, doubled quotes as one."""
    if column.type == IDS:
        chunks = [pa.DictionaryArray.from_arrays(c.indices, _without_quotes(c.dictionary)) for c in column.chunks]
        return pa.chunked_array(chunks, type=IDS)
    return pa.chunked_array([_without_quotes(chunk) for chunk in column.chunks], type=column.type)


def _without_quotes(values: pa.Array) -> pa.Array:
    around = pc.match_substring_regex(values, '^"([^"]|"")*"$')
    if not pc.any(around).as_py():
        return values
    inner = pc.replace_substring(pc.utf8_slice_codeunits(values, 1, -1), '""', '"')
    return pc.if_else(around, inner, values)


def sniff_separator(line: str) -> str:
    """The separator of a line: ``::``, a tab, or the one of comma, semicolon and bar that occurs most; else a blank."""
    if "\t" in line:
        return "\t"
    if "::" in line:
        return "::"
    best = max(_SEPARATORS, key=line.count)
    if line.count(best):
        return best
    return " " if " " in line.strip() else ","


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.strip().lower() not in ("nan", "inf", "infinity")


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
        return cls(path, tuple(_guarded(path, lambda: pyarrow.parquet.read_schema(path)).names))

    def read(self, ids: Sequence[str], values: Sequence[str]) -> pa.Table:
        """As `Table.read`."""
        wanted = list(dict.fromkeys([*ids, *values]))
        table = _guarded(self.path, lambda: pyarrow.parquet.read_table(self.path, columns=wanted, partitioning=None))
        return MemoryTable(self.label, table).read(ids, values)

    def where(self, row: int) -> str:
        """File and row, counted from 0."""
        return f"{self.path} row {row}"


@dataclass(frozen=True, eq=False)
class _JsonLines:
    """One JSON object a line (Python's own notation, which some data sets have, is read as well), or a list of them."""

    path: Path
    names: tuple[str, ...]

    @property
    def label(self) -> str:
        """The path."""
        return str(self.path)

    @classmethod
    def open(cls, path: Path) -> _JsonLines:
        names: dict[str, None] = {}
        for number, (_, row) in enumerate(_json_rows(path)):
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
        for _, row in _json_rows(self.path):
            for name in wanted:
                rows[name].append(_plain(row.get(name)))
            if len(rows[wanted[0]]) >= _JSON_ROWS:
                tables.append(_block(rows, types))
                rows = {name: [] for name in wanted}
        tables.append(_block(rows, types))
        return pa.concat_tables(tables).unify_dictionaries()

    def where(self, row: int) -> str:
        """File and line."""
        return f"{self.path} line {next(line for n, (line, _) in enumerate(_json_rows(self.path)) if n == row)}"


def _block(rows: dict[str, list[str | None]], types: dict[str, pa.DataType]) -> pa.Table:
    return pa.table({name: as_ids_or_text(pa.array(rows[name], pa.string()), types[name]) for name in types})


def as_ids_or_text(column: pa.Array, wanted: pa.DataType) -> pa.Array:
    """A text column, dictionary-encoded where ids are wanted."""
    return column.dictionary_encode() if wanted == IDS else column


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line that is not blank."""
    try:
        with stream(path) as raw:
            start = raw.read(64).lstrip()
        if start.startswith(b"["):
            yield from _json_list(path)
            return
        with stream(path) as raw:
            for line, text in enumerate(cast(Any, _readable(raw)), start=1):
                if text.strip():
                    yield line, _json_object(path, line, text)
    except _DAMAGE as error:
        raise DataError.one("file", str(path), f"cannot be read ({_first_line(error)})", "is the file whole?") from None


def _json_list(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        content = json.loads(text_of(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError.one(str(path), _first_line(error), "must be JSON") from None
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


@dataclass(frozen=True, eq=False)
class _Folder:
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
