"""LLaRA's and iLoRA's data folder: ``train_data``, ``Val_data``, ``Test_data`` and ``id2name.txt`` or ``u.item``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from src.core.errors import DataError, Problem
from src.core.logging import get_logger
from src.data.adapters.registry import Adapter, register
from src.data.catalogue import ItemRows, build_id_map
from src.data.delimited import limited, read_text
from src.data.pre_split import PreSplit
from src.data.sequence_table import read_sequence_table
from src.data.settings import DatasetSettings
from src.data.titles import TitleHandling, movie_title

_log = get_logger(__name__)

READS = frozenset({"title_handling", "title_year"})

_TABLES = {"train": "train_data", "validation": "Val_data", "test": "Test_data"}
_NAMES, _MOVIES = "id2name.txt", "u.item"


def load(settings: DatasetSettings) -> PreSplit:
    """Read the three tables in ``root`` (``.df`` or ``.csv``) and the titles.

    The published loader keeps rows with three items of history or more: ``min_history`` = 3. `PreSplit` holds every
    row, so that a row's number is that of the file.
    """
    found = _titles(settings)
    titles = found.names
    numbers = sorted(titles)
    if numbers != list(range(len(numbers))):
        gap = next(place for place, number in enumerate(numbers) if place != number)
        lines = ", ".join(map(str, found.joined[:5]))
        step = f"lines {lines} have no id:: and were read as parts of the name before them" if lines else ""
        rule = "item ids must be 0..V-1 without a gap; this one has no title"
        raise DataError.one(str(settings.root), gap, rule, step)
    rows = ItemRows(str(found.path), list(map(str, numbers)), [titles[number] for number in numbers])
    id_map = build_id_map(rows, settings, clean=settings.title_handling != "as_released")
    tables = {split: read_sequence_table(settings.root, stem, len(numbers)) for split, stem in _TABLES.items()}
    return PreSplit(settings.name, id_map, tables)


class Titles(NamedTuple):
    """Titles by 0-based id, and the lines that were read as parts of the name before them."""

    path: Path
    names: dict[int, str]
    joined: tuple[int, ...]


def _titles(settings: DatasetSettings) -> Titles:
    names, movies = settings.root / _NAMES, settings.root / _MOVIES
    if names.exists() and movies.exists():
        rule = f"holds both {_NAMES} and {_MOVIES}"
        raise DataError.one("folder", str(settings.root), rule, "keep the one that fits")
    if movies.exists():
        return _read_movies(movies, settings.title_handling, settings.title_year)
    text = read_text(names, next_step=f"put {_NAMES} or {_MOVIES} into {settings.root}")
    return _read_names(names, text, settings.title_handling)


def _read_names(path: Path, text: str, handling: TitleHandling) -> Titles:
    """``id::name``, 0-based; as released a name ends at its first ``::``."""
    return _collect(
        path,
        text,
        "::",
        lambda fields: fields[1].strip() if handling == "as_released" else "::".join(fields[1:]).strip(),
        base=0,
        joins=handling != "as_released",
    )


def _read_movies(path: Path, handling: TitleHandling, keep_year: bool) -> Titles:
    """MovieLens 100K's ``u.item``: UTF-8 where it was saved again, else ISO-8859-1; ids from 1, title second."""
    text = read_text(path, fallback="iso-8859-1") if handling != "as_released" else read_text(path, "iso-8859-1")
    return _collect(path, text, "|", lambda fields: movie_title(fields[1], handling, keep_year), base=1, joins=False)


def _collect(
    path: Path, text: str, separator: str, title: Callable[[list[str]], str], base: int, joins: bool
) -> Titles:
    """Titles by 0-based id, from lines whose first field is an id that counts from ``base``.

    With ``joins`` a line without the separator goes on with the name of the line before it.
    """
    rows: list[tuple[int, str]] = []
    joined: list[int] = []
    for line, row in enumerate(text.replace("\r\n", "\n").rstrip("\n").split("\n"), start=1):
        if joins and rows and separator not in row:
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {row.strip()}")
            joined.append(line)
        else:
            rows.append((line, row))
    titles: dict[int, str] = {}
    where: dict[int, int] = {}
    problems, repeated = [], 0
    for line, row in rows:
        fields = row.split(separator)
        raw = fields[0].strip()
        number = int(raw) - base if raw.isdecimal() else -1
        if len(fields) < 2 or number < 0:
            problems.append(Problem(f"{path} line {line}", row[:60], f"must be id{separator}name, ids from {base}"))
        elif number not in titles:
            titles[number], where[number] = title(fields), line
        elif titles[number] == title(fields):
            repeated += 1
        else:
            rule = f"is listed twice, with another name in line {where[number]}: {titles[number]!r}"
            problems.append(Problem(f"{path} line {line}", raw, rule, "keep one line an item"))
    if problems:
        raise DataError(limited(problems, str(path)))
    if repeated:
        _log.warning("%s: %d lines repeat another one and count once", path, repeated)
    if joined:
        shown = ", ".join(map(str, joined[:5]))
        _log.warning("%s: %d lines without id:: go on with the name before them (lines %s)", path, len(joined), shown)
    return Titles(path, titles, tuple(joined))


register("llara", Adapter(load, READS, pre_split=True))
