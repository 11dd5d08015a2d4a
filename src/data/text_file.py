"""Text files of separated fields as tables: through Arrow where it can read them, by our own rule where not."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from src.core.errors import DataError, Problem, first_line
from src.data.arrow_columns import IDS
from src.data.compressed_files import DAMAGE, arrow_stream, guarded, head, marked, readable, stream, text_of
from src.data.delimited import SHOWN, limited, split_records

_BLOCK = 8 << 20
#: bytes from which a text file is searched a few lines at a time
_LARGE = 256 << 20
#: lines that one quoted field may have where a large file is searched
_QUOTED_LINES = 1_000
#: RecBole's headers say ``user_id:token``
_RECBOLE_TYPE = re.compile(r":(token|token_seq|float|float_seq)$")
_SEPARATORS = ("\t", ",", ";", "|")


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
        start = head(path)
        encoding = form.encoding or marked(start) or "utf-8"
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
            lines = enumerate(io.TextIOWrapper(readable(raw), encoding, errors="replace", newline=""), start=1)
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
            except DAMAGE as error:
                rule = f"cannot be read ({first_line(error, most=200)})"
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

        found: int = guarded(self.path, count)
        return found

    def _arrow_names(self) -> list[str]:
        """Names as Arrow sees them: a separator of two characters is a column of nothing between two of one."""
        if len(self.separator) == 1:
            return list(self.names)
        return [part for place, name in enumerate(self.names) for part in ([f"\0{place}", name] if place else [name])]

    def _parse(self, types: dict[str, pa.DataType], names: list[str], quoted: bool, lines: bool) -> pa.Table:
        utf8 = self.encoding in ("utf-8", "utf-8-sig")
        with arrow_stream(self.path) as source:
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
