"""MovieLens as GroupLens publishes it: 100K (``u.data``, ``u.item``) and 1M (``ratings.dat``, ``movies.dat``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from src.core.errors import ConfigError, DataError, Problem
from src.data.adapters.movielens_download import download
from src.data.delimited import DelimitedFile, limited, parse_delimited, read_text
from src.data.id_map import IdMap
from src.data.interactions import Interactions
from src.data.settings import DatasetSettings
from src.data.titles import movie_title

READS = frozenset({"title_handling", "title_year", "download"})

_ENCODING = "iso-8859-1"


@dataclass(frozen=True)
class _Layout:
    """Two files: user, item, rating, time; and item, title, …"""

    ratings: str
    ratings_separator: str
    movies: str
    movies_separator: str
    movie_fields: int
    md5: str


LAYOUTS: Mapping[str, _Layout] = {
    "ml-100k": _Layout("u.data", "\t", "u.item", "|", 24, "0e33842e24a9c977be4e0107933c0723"),
    "ml-1m": _Layout("ratings.dat", "::", "movies.dat", "::", 3, "c4d9eecfca2ab87c1945afe126590906"),
}


def load(settings: DatasetSettings) -> Interactions:
    """Read the raw files in ``root``, after fetching them where they are missing and ``download`` allows it.

    The movie file fixes the order of items (so item index = MovieLens id − 1 in 100K, before unused items go).
    """
    layout = LAYOUTS.get(settings.name)
    if layout is None:
        step = f"use {' or '.join(LAYOUTS)}, or dataset=recbole for other data"
        raise ConfigError.one("dataset.name", settings.name, "is no MovieLens release that this adapter knows", step)
    _require_files(settings, layout)
    ratings = parse_delimited(
        settings.root / layout.ratings,
        read_text(settings.root / layout.ratings, _ENCODING),
        layout.ratings_separator,
        fields=4,
    )
    id_map = _catalogue(settings, layout)
    users, _, no_user = ratings.codes(0, "user")
    codes, raw_items, no_item = ratings.codes(1, "item")
    values, bad_ratings = ratings.numbers(2, "rating")
    timestamps, bad_times = ratings.numbers(3, "timestamp")
    index = {raw: place for place, raw in enumerate(id_map.raw_ids)}
    lookup = np.array([index.get(raw, -1) for raw in raw_items], dtype=np.int64)
    items = lookup[codes] if len(codes) else codes
    problems = [*no_user, *no_item, *bad_ratings, *bad_times, *_unknown(ratings, items, layout)]
    if problems:
        raise DataError(problems)
    return Interactions(settings.name, users, items, timestamps, values.astype(np.float32), id_map)


def _require_files(settings: DatasetSettings, layout: _Layout) -> None:
    wanted = (layout.movies, layout.ratings)
    missing = [name for name in wanted if not (settings.root / name).is_file()]
    if missing and settings.download:
        download(settings.name, settings.root, missing, layout.md5)
    elif missing:
        step = "set dataset.download=true, or put the files of files.grouplens.org/datasets/movielens there"
        raise DataError([Problem("file", str(settings.root / name), "is missing", step) for name in missing])


def _catalogue(settings: DatasetSettings, layout: _Layout) -> IdMap:
    path = settings.root / layout.movies
    movies = parse_delimited(path, read_text(path, _ENCODING), layout.movies_separator, layout.movie_fields)
    titles = tuple(movie_title(field, settings.title_handling, settings.title_year) for field in movies.columns[1])
    return IdMap(tuple(movies.columns[0]), titles)


def _unknown(ratings: DelimitedFile, items: NDArray[np.int64], layout: _Layout) -> list[Problem]:
    rule = f"is outside the catalogue: {layout.movies} does not list it"
    problems = [ratings.problem(int(row), ratings.columns[1][row], rule) for row in np.flatnonzero(items < 0)]
    return limited(problems, str(ratings.path))
