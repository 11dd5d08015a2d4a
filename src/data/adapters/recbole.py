"""RecBole's atomic files: ``<name>.inter`` and, for titles, ``<name>.item``; or its benchmark split in three files."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from src.core.errors import ConfigError, DataError, Problem
from src.core.logging import get_logger
from src.data.adapters import table as tables
from src.data.adapters.recbole_split import SPLIT_FILES, load_split
from src.data.adapters.registry import Adapter, register
from src.data.catalogue import ItemRows, cleaned
from src.data.columns import plain_name, resolve
from src.data.compressed_files import bare_name, find
from src.data.delimited import limited, what_is_there
from src.data.event_log import READS, item_column, read_items, read_log
from src.data.interactions import Interactions
from src.data.pre_split import PreSplit
from src.data.settings import DatasetSettings
from src.data.tables import Table, is_table, open_table
from src.data.text_file import TextFile, TextForm
from src.data.titles import move_article, with_year

_log = get_logger(__name__)

_TYPES = ("token", "token_seq", "float", "float_seq")


def is_split(settings: DatasetSettings) -> bool:
    """Whether the folder holds a benchmark split instead of one log."""
    return find(settings.root / f"{settings.name}.inter") is None and all(
        find(settings.root / f"{settings.name}.{part}.inter") is not None for part in SPLIT_FILES.values()
    )


def load(settings: DatasetSettings) -> Interactions | PreSplit:
    """Read ``root/<name>.inter`` and ``root/<name>.item``.

    The item file fixes the order of items; items that it does not list follow, without title. Without an item file no
    item has one. A title is the title field with its article in front; the ``release_year`` is added where
    ``title_year`` asks for it. Where ``<name>.inter`` is missing but a table of that name is there, that is read.
    """
    if is_split(settings):
        return load_split(settings, item_rows(settings, "item_id"))
    path = settings.root / f"{settings.name}.inter"
    if find(path) is None:
        return _other_table(settings, path)
    log = open_atomic(path, settings)
    timed = ("time",) if settings.order == "time" else ()
    columns = resolve(settings.columns, log.names, log.label, ("user", "item", *timed), ("rating",))
    renamed = {role: name for role, name in columns.items() if plain_name(name) not in _OWN_NAMES[role]}
    if renamed:
        _log.info("%s: %s", log.label, ", ".join(f"{role} = {name}" for role, name in renamed.items()))
    return read_log(log, columns, item_rows(settings, columns["item"]), settings)


def files(settings: DatasetSettings) -> list[Path]:
    """The atomic files of the data set, or everything in ``root`` that may take their place."""
    root, name = settings.root, settings.name
    if is_split(settings):
        return [root / f"{name}.{part}" for part in (*(f"{split}.inter" for split in SPLIT_FILES.values()), "item")]
    if find(root / f"{name}.inter") is not None:
        return [root / f"{name}.inter", root / f"{name}.item"]
    return [root]


_OWN_NAMES = {"user": ("userid",), "item": ("itemid",), "time": ("timestamp",), "rating": ("rating",)}


def open_atomic(path: Path, settings: DatasetSettings) -> Table:
    """An atomic file, whose header may lack RecBole's types.

    Raises ``DataError`` for a type that RecBole does not know.
    """
    table = open_table(path, TextForm(settings.separator, settings.encoding, settings.header))
    rule = f"must be field:type with a type of {', '.join(_TYPES)}, or a name alone"
    if isinstance(table, TextFile):
        wrong = [Problem(f"{path} line 1", name, rule) for name in table.names if re.fullmatch(r"\S+:\S*", name)]
        if wrong:
            raise DataError(limited(wrong, f"{path} line 1"))
    return table


def item_rows(settings: DatasetSettings, item: str) -> ItemRows | None:
    """``<name>.item`` with titles in the form that people write; None where it is missing."""
    path = settings.root / f"{settings.name}.item"
    if find(path) is None:
        if settings.title_year:
            raise ConfigError.one("dataset.title_year", True, f"{path.name} is missing", "remove this option")
        if settings.item_text != "{title}":
            raise ConfigError.one("dataset.item_text", settings.item_text, f"{path.name} is missing", "remove it")
        return None
    table = open_atomic(path, replace(settings, separator=None, header=()))
    rows = read_items(table, settings, item_column(table, settings, item))
    titles = None if rows.titles is None else [move_article(title) for title in cleaned(table.label, rows.titles)]
    if settings.title_year:
        titles = _with_years(table, titles)
    return replace(rows, titles=titles)


def _with_years(table: Table, titles: list[str] | None) -> list[str] | None:
    if "release_year" not in table.names or titles is None:
        rule = f"{table.label} has no release_year" if titles is not None else f"{table.label} has no titles"
        step = f"remove this option; the fields are {', '.join(table.names)}"
        raise ConfigError.one("dataset.title_year", True, rule, step)
    years = table.read([], ["release_year"]).column(0).to_pylist()
    return [with_year(title, (year or "").strip()) for title, year in zip(titles, years, strict=True)]


def _other_table(settings: DatasetSettings, missing: Path) -> Interactions:
    """A table in another format that is called like the data set, in place of the atomic file."""
    root = settings.root
    files = sorted(root.iterdir()) if root.is_dir() else []
    named = [file for file in files if file.is_file() and is_table(file) and bare_name(file) == settings.name]
    named = [file for file in named if file.name != f"{settings.name}.item"]
    if len(named) != 1:
        raise DataError.one("file", str(missing), "is missing", what_is_there(missing))
    if settings.title_year:
        raise ConfigError.one("dataset.title_year", True, f"{missing} is missing, and {named[0].name} has no years")
    _log.warning("%s is missing; %s is read as dataset=table does", missing.name, named[0].name)
    return tables.load(
        replace(settings, adapter="table", interactions_file=named[0].name, items_file=_items_of(settings))
    )


def _items_of(settings: DatasetSettings) -> str | None:
    """The file of items that stands beside such a table: ``meta_NAME`` (Amazon's) or ``NAME.item``."""
    files = sorted(settings.root.iterdir())
    names = (f"meta_{settings.name}", f"{settings.name}_meta", f"{settings.name}_items")
    found = [file.name for file in files if bare_name(file) in names or file.name == f"{settings.name}.item"]
    return found[0] if len(found) == 1 else None


register("recbole", Adapter(load, READS | {"title_year"}, is_split, files))
