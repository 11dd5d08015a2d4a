"""RecBole's atomic files: ``<name>.inter`` and, for titles, ``<name>.item``; tab-separated, header ``field:type``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from src.core.errors import DataError, Problem
from src.data.delimited import DelimitedFile, limited, parse_delimited, read_text
from src.data.id_map import IdMap
from src.data.interactions import Interactions
from src.data.settings import DatasetSettings
from src.data.titles import move_article, with_year

READS = frozenset({"title_year"})

_TYPES = ("token", "token_seq", "float", "float_seq")

#: The first of these fields that the item file has is the title.
TITLE_FIELDS = ("title", "movie_title", "item_title", "name", "item_name", "product_title", "book_title", "track_name")


@dataclass(frozen=True, eq=False)
class _AtomicFile:
    fields: tuple[str, ...]
    table: DelimitedFile

    def column(self, name: str) -> int:
        """The place of a field that is known to be there."""
        return self.fields.index(name)


def load(settings: DatasetSettings) -> Interactions:
    """Read ``root/<name>.inter`` and ``root/<name>.item``.

    The item file fixes the order of items; an interaction with an item that it does not list is an error. Without an
    item file the items have no titles. A title is the title field with its article in front; the ``release_year`` is
    added where ``title_year`` asks for it.
    """
    log = _read(settings.root / f"{settings.name}.inter", ("user_id", "item_id", "timestamp"))
    users, _, no_user = log.table.codes(log.column("user_id"), "user_id")
    codes, raw_items, no_item = log.table.codes(log.column("item_id"), "item_id")
    timestamps, bad_times = log.table.numbers(log.column("timestamp"), "timestamp")
    ratings, bad_ratings = None, list[Problem]()
    if "rating" in log.fields:
        values, bad_ratings = log.table.numbers(log.column("rating"), "rating")
        ratings = values.astype(np.float32)
    problems = [*no_user, *no_item, *bad_times, *bad_ratings]
    try:
        id_map = _catalogue(settings.root / f"{settings.name}.item", raw_items, settings.title_year)
        problems += _unknown_items(log.table, codes, raw_items, id_map)
    except DataError as error:
        problems += error.problems
    if problems:
        raise DataError(problems)
    index = {raw: place for place, raw in enumerate(id_map.raw_ids)}
    items = np.array([index[raw] for raw in raw_items], dtype=np.int64)[codes]
    return Interactions(settings.name, users, items, timestamps, ratings, id_map)


def _read(path: Path, required: Sequence[str]) -> _AtomicFile:
    text = read_text(path)
    header = text.partition("\n")[0].rstrip("\r")
    fields, problems = [], []
    for part in header.split("\t"):
        name, _, kind = part.partition(":")
        fields.append(name)
        if kind not in _TYPES:
            problems.append(Problem(f"{path} line 1", part, f"must be field:type with a type of {', '.join(_TYPES)}"))
    for name in sorted({name for name in fields if fields.count(name) > 1}):
        problems.append(Problem(f"{path} line 1", name, "stands in the header twice"))
    if not problems:
        problems += [
            Problem(f"{path} line 1", header[:80], f"has no field {name}", f"add a column {name}")
            for name in required
            if name not in fields
        ]
    if problems:
        raise DataError(limited(problems, f"{path} line 1"))
    return _AtomicFile(tuple(fields), parse_delimited(path, text, "\t", len(fields), skip=1))


def _catalogue(path: Path, raw_items: list[str], keep_year: bool) -> IdMap:
    if not path.exists():
        return IdMap(tuple(raw_items), ("",) * len(raw_items))
    file = _read(path, ("item_id",))
    codes, raw_ids, problems = file.table.codes(file.column("item_id"), "item_id")
    first_seen = np.unique(codes, return_index=True)[1]
    repeated = [
        file.table.problem(int(row), raw_ids[codes[row]], "item_id is listed twice", "keep one line an item")
        for row in np.setdiff1d(np.arange(len(codes)), first_seen)
    ]
    problems += limited(repeated, str(path))
    if problems:
        raise DataError(problems)
    field = next((name for name in TITLE_FIELDS if name in file.fields), None)
    if field is None:
        return IdMap(tuple(raw_ids), ("",) * len(raw_ids))
    titles = [move_article(title.strip()) for title in file.table.columns[file.column(field)]]
    if keep_year and "release_year" in file.fields:
        years = file.table.columns[file.column("release_year")]
        titles = [with_year(title, year.strip()) for title, year in zip(titles, years, strict=True)]
    return IdMap(tuple(raw_ids), tuple(titles))


def _unknown_items(
    table: DelimitedFile, codes: NDArray[np.int64], raw_items: list[str], id_map: IdMap
) -> list[Problem]:
    known = set(id_map.raw_ids)
    unknown = np.array([raw not in known and raw != "" for raw in raw_items], dtype=bool)
    rows = np.flatnonzero(unknown[codes]) if len(codes) else codes
    rule = f"is outside the catalogue: {table.path.stem}.item does not list it"
    problems = [table.problem(int(row), raw_items[codes[row]], rule, "add the item or remove the line") for row in rows]
    return limited(problems, str(table.path))
