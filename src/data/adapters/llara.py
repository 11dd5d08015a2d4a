"""LLaRA's and iLoRA's data folder: ``train_data``, ``Val_data``, ``Test_data`` and ``id2name.txt`` or ``u.item``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from src.core.errors import DataError, Problem
from src.data.delimited import limited, read_text
from src.data.id_map import IdMap
from src.data.pre_split import PreSplit
from src.data.sequence_table import read_sequence_table
from src.data.settings import DatasetSettings
from src.data.titles import TitleHandling, movie_title

READS = frozenset({"title_handling", "title_year"})

_TABLES = {"train": "train_data", "validation": "Val_data", "test": "Test_data"}
_NAMES, _MOVIES = "id2name.txt", "u.item"


def load(settings: DatasetSettings) -> PreSplit:
    """Read the three tables in ``root`` (``.df`` or ``.csv``) and the titles.

    The published loader keeps rows with three items of history or more: ``min_history`` = 3. `PreSplit` holds every
    row, so that a row's number is that of the file.
    """
    titles = _titles(settings)
    numbers = sorted(titles)
    if numbers != list(range(len(numbers))):
        gap = next(place for place, number in enumerate(numbers) if place != number)
        raise DataError.one(str(settings.root), gap, "item ids must be 0..V-1 without a gap; this one has no title")
    id_map = IdMap(tuple(map(str, numbers)), tuple(titles[number] for number in numbers))
    tables = {split: read_sequence_table(settings.root, stem, len(numbers)) for split, stem in _TABLES.items()}
    return PreSplit(settings.name, id_map, tables)


def _titles(settings: DatasetSettings) -> dict[int, str]:
    names, movies = settings.root / _NAMES, settings.root / _MOVIES
    if names.exists() and movies.exists():
        rule = f"holds both {_NAMES} and {_MOVIES}"
        raise DataError.one("folder", str(settings.root), rule, "keep the one that fits")
    if movies.exists():
        return _read_movies(movies, settings.title_handling, settings.title_year)
    text = read_text(names, next_step=f"put {_NAMES} or {_MOVIES} into {settings.root}")
    return _read_names(names, text, settings.title_handling)


def _read_names(path: Path, text: str, handling: TitleHandling) -> dict[int, str]:
    """``id::name``, 0-based; as released a name ends at its first ``::``."""
    return _collect(
        path,
        text,
        "::",
        lambda fields: fields[1].strip() if handling == "as_released" else "::".join(fields[1:]).strip(),
        base=0,
    )


def _read_movies(path: Path, handling: TitleHandling, keep_year: bool) -> dict[int, str]:
    """MovieLens 100K's ``u.item``: ISO-8859-1, ids from 1, title in the second field."""
    text = read_text(path, "iso-8859-1")
    return _collect(path, text, "|", lambda fields: movie_title(fields[1], handling, keep_year), base=1)


def _collect(path: Path, text: str, separator: str, title: Callable[[list[str]], str], base: int) -> dict[int, str]:
    """Titles by 0-based id, from lines whose first field is an id that counts from ``base``."""
    titles: dict[int, str] = {}
    problems = []
    for line, row in enumerate(text.replace("\r\n", "\n").rstrip("\n").split("\n"), start=1):
        fields = row.split(separator)
        raw = fields[0].strip()
        if len(fields) < 2 or not raw.isdecimal() or int(raw) < base:
            problems.append(Problem(f"{path} line {line}", row[:60], f"must be id{separator}name, ids from {base}"))
        elif int(raw) - base in titles:
            problems.append(Problem(f"{path} line {line}", raw, "is listed twice"))
        else:
            titles[int(raw) - base] = title(fields)
    if problems:
        raise DataError(limited(problems, str(path)))
    return titles
