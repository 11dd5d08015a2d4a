"""MovieLens as GroupLens publishes it, from 100K (1998) to 32M (2023) and latest-small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from src.core.errors import ConfigError, DataError, Problem
from src.data.adapters.movielens_download import SOURCE, download
from src.data.adapters.registry import Adapter, register
from src.data.catalogue import ItemRows, cleaned, wanted_fields
from src.data.compressed_files import find
from src.data.delimited import what_is_there
from src.data.event_log import read_items, read_log
from src.data.interactions import Interactions
from src.data.item_text import ItemTemplate
from src.data.settings import DatasetSettings
from src.data.tables import Table, open_table
from src.data.text_file import TextForm
from src.data.titles import movie_title, year_of

READS = frozenset({"title_handling", "title_year", "download", "encoding", "item_text"})

_LOG = ("user_id", "item_id", "rating", "timestamp")
_GENRES = [
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
]  # fmt: skip


@dataclass(frozen=True)
class _Layout:
    """Two files: user, item, rating, time; and item, title, …

    ``names`` are the columns of files that do not name them; ``md5`` of the published archive, "" where it changes;
    ``folder`` is what the archive calls its folder.
    """

    ratings: str
    movies: str
    separators: tuple[str, str] = (",", ",")
    movie_names: tuple[str, ...] = ()
    md5: str = ""
    folder: str = ""


_DAT = ("item_id", "title", "genres")
_ITEM = ("item_id", "title", "release_date", "video_date", "url", *_GENRES)

LAYOUTS: Mapping[str, _Layout] = {
    "ml-100k": _Layout("u.data", "u.item", ("\t", "|"), _ITEM, "0e33842e24a9c977be4e0107933c0723"),
    "ml-1m": _Layout("ratings.dat", "movies.dat", ("::", "::"), _DAT, "c4d9eecfca2ab87c1945afe126590906"),
    "ml-10m": _Layout(
        "ratings.dat", "movies.dat", ("::", "::"), _DAT, "ce571fd55effeba0271552578f2648bd", "ml-10M100K"
    ),
    "ml-20m": _Layout("ratings.csv", "movies.csv", md5="cd245b17a1ae2cc31bb14903e1204af3"),
    "ml-25m": _Layout("ratings.csv", "movies.csv", md5="6b51fb2759a8657d3bfcbfc42b592ada"),
    "ml-32m": _Layout("ratings.csv", "movies.csv", md5="d472be332d4daa821edc399621853b57"),
    "ml-latest": _Layout("ratings.csv", "movies.csv"),
    "ml-latest-small": _Layout("ratings.csv", "movies.csv"),
}


def load(settings: DatasetSettings) -> Interactions:
    """Read the raw files in ``root``, after fetching them where they are missing and ``download`` allows it.

    The movie file fixes the order of items (so item index = MovieLens id − 1 in 100K, before unused items go); films
    that it does not list follow, without title. Files are UTF-8 where their bytes are, else ISO-8859-1.
    """
    layout = _layout(settings)
    _require_files(settings, layout)
    log_form = TextForm(layout.separators[0], settings.encoding, _LOG if layout.movie_names else (), "iso-8859-1")
    log = open_table(settings.root / layout.ratings, log_form)
    if layout.movie_names:
        columns = dict(zip(("user", "item", "rating", "time"), _LOG, strict=True))
    else:
        columns = {"user": "userId", "item": "movieId", "rating": "rating", "time": "timestamp"}
        if missing := [name for name in columns.values() if name not in log.names]:
            rule = f"are no columns of {log.label}"
            raise DataError.one(f"{log.label} columns", missing, rule, f"the columns are {', '.join(log.names)}")
    return read_log(log, columns, _movies(settings, layout), settings)


def files(settings: DatasetSettings) -> list[Path]:
    """Ratings and films, fetched where they are missing and ``download`` allows it."""
    layout = _layout(settings)
    _require_files(settings, layout)
    return [settings.root / layout.ratings, settings.root / layout.movies]


def _layout(settings: DatasetSettings) -> _Layout:
    layout = LAYOUTS.get(settings.name)
    if layout is None:
        *most, last = LAYOUTS
        step = f"use {', '.join(most)} or {last}, or dataset=table for other data"
        raise ConfigError.one("dataset.name", settings.name, "is no MovieLens release that this adapter knows", step)
    return layout


def _require_files(settings: DatasetSettings, layout: _Layout) -> None:
    wanted = (layout.movies, layout.ratings)
    missing = [name for name in wanted if find(settings.root / name) is None]
    if missing and settings.download and layout.md5:
        download(settings.name, settings.root, missing, layout.md5, layout.folder or settings.name)
    elif missing:
        step, rule = "put the files of files.grouplens.org/datasets/movielens there", "is missing"
        if layout.md5:
            step = f"set dataset.download=true, or {step}"
        elif settings.download:
            rule += ", and dataset.download=true does not fetch this release: no checksum of it is published"
            step = f"unpack {SOURCE}/{settings.name}.zip and put {', '.join(missing)} there by hand"
        problems = []
        for name in missing:
            path = settings.root / name
            there = what_is_there(path) if settings.root.is_dir() else ""
            problems.append(Problem("file", str(path), rule, f"{step}; {there}" if there else step))
        raise DataError(problems)


def _movies(settings: DatasetSettings, layout: _Layout) -> ItemRows:
    # in .dat files a title may hold the separator
    open_field = 1 if layout.separators[1] == "::" else None
    form = TextForm(layout.separators[1], settings.encoding, layout.movie_names, "iso-8859-1", open_field)
    table = open_table(settings.root / layout.movies, form)
    item = "item_id" if layout.movie_names else "movieId"
    names = [name for name in ItemTemplate.parse(settings.item_text).fields if name != "title"]
    rows = read_items(table, replace(settings, item_text="{title}"), item, "title")
    raw = list(rows.titles or ())
    if settings.title_handling == "corrected":
        raw = cleaned(table.label, raw)
    titles = [movie_title(title, settings.title_handling, settings.title_year) for title in raw]
    return replace(rows, titles=titles, fields={name: _field(name, table, raw, settings) for name in names})


def _field(name: str, table: Table, titles: Sequence[str], settings: DatasetSettings) -> list[str]:
    """A field of each film: the year stands in its title, the genres in a column or, in 100K, in one flag each."""
    if name == "year":
        return [year_of(title) for title in titles]
    if name == "genres" and "genres" not in table.names:
        flags = table.read([], _GENRES).to_pydict()
        return [
            ", ".join(genre for genre in _GENRES[1:] if flags[genre][row].strip() == "1") for row in range(len(titles))
        ]
    column = wanted_fields(replace(settings, item_text=f"{{{name}}}"), table.names)[name]
    values = [value or "" for value in table.read([], [column]).column(0).to_pylist()]
    return ["" if value == "(no genres listed)" else value for value in values]


register("movielens", Adapter(load, READS, files=files))
