"""Text files of separated fields: their records, and what a message says about a file or a line that is wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from src.core.errors import DataError, Problem

#: Problems of one kind that a message lists; the rest are counted.
SHOWN = 5


def read_text(path: Path, encoding: str = "utf-8-sig", next_step: str = "", fallback: str | None = None) -> str:
    """A file's text.

    Args:
        path: the file.
        encoding: how its bytes are read.
        next_step: what to do when the file is missing.
        fallback: the encoding for a file that is not of the first one; None: such a file is refused.

    Raises:
        DataError: the file is missing, unreadable or in another encoding (with the line).
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError.one("file", str(path), "is missing", next_step or what_is_there(path)) from None
    except OSError as error:
        raise DataError.one("file", str(path), f"cannot be read ({error.strerror})", "check the path") from None
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        if fallback is not None:
            return content.decode(fallback)
        raise DataError([not_text(path, content, encoding, error)]) from None


def not_text(path: Path, content: bytes, encoding: str, error: UnicodeDecodeError) -> Problem:
    """The problem of bytes that are no text in this encoding, with their line and how to convert the file.

    Args:
        path: the file.
        content: its bytes.
        encoding: the one that was tried.
        error: what Python said.
    """
    line = content.count(b"\n", 0, error.start) + 1
    step = (
        f"name its encoding (dataset.encoding=iso-8859-1 where the source reads that option), "
        f"or convert it: iconv -f ISO-8859-1 -t UTF-8 {path.name}"
    )
    rule = f"is not {encoding.removesuffix('-sig')} text"
    return Problem(f"{path} line {line}", content[error.start : error.start + 8], rule, step)


def what_is_there(path: Path) -> str:
    """The next step for a file that is missing: what its folder holds."""
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist: check dataset.root and dataset.name"
    found = sorted(entry.name for entry in path.parent.iterdir())[:8]
    return f"check dataset.root and dataset.name; the folder holds {', '.join(found) or 'nothing'}"


def limited(problems: Sequence[Problem], what: str) -> list[Problem]:
    """The first `SHOWN` problems, and a line that counts the others."""
    rest = len(problems) - SHOWN
    more = [Problem(what, f"{rest} more", "of the same kind")] if rest > 0 else []
    return [*problems[:SHOWN], *more]


@cache
def _quoted_field(separator: str) -> re.Pattern[str]:
    return re.compile(rf'"((?:[^"]|"")*)"(?={re.escape(separator)}|\n|$)')


def split_records(text: str, separator: str) -> list[tuple[int, list[str]]]:
    """The line number and the fields of every record of a text.

    A field that begins with a quote and ends with one, before a separator or the line's end, is quoted as CSV has it:
    it may hold separators, lines and doubled quotes. Every other quote is a character like any other. Blank lines at
    the end are no records.
    """
    text = text.replace("\r\n", "\n").rstrip("\n")
    if not text:
        return []
    if '"' not in text:
        return [(number, line.split(separator)) for number, line in enumerate(text.split("\n"), start=1)]
    records, number, place = [], 1, 0
    while place <= len(text):
        end = text.find("\n", place)
        end = len(text) if end < 0 else end
        line = number
        if '"' not in text[place:end]:
            fields = text[place:end].split(separator)
            place = end
        else:
            fields, stop = _fields(text, place, separator)
            number += text.count("\n", place, stop)
            place = stop
        records.append((line, fields))
        number, place = number + 1, place + 1
    return records


def _fields(text: str, place: int, separator: str) -> tuple[list[str], int]:
    """The fields of the record that begins at ``place``, and where it ends."""
    fields = []
    while True:
        quoted = _quoted_field(separator).match(text, place) if text.startswith('"', place) else None
        if quoted is not None:
            fields.append(quoted[1].replace('""', '"'))
            place = quoted.end()
        else:
            ends = [found for mark in (separator, "\n") if (found := text.find(mark, place)) >= 0]
            end = min(ends, default=len(text))
            fields.append(text[place:end])
            place = end
        if not text.startswith(separator, place):
            return fields, place
        place += len(separator)
