"""A log as people have it: CSV, TSV, Parquet or JSON Lines, one file or a folder, or a table in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from src.core.errors import ConfigError, DataError, Problem
from src.core.logging import get_logger
from src.data.adapters.registry import Adapter, register
from src.data.columns import guess, plain_name, resolve
from src.data.compressed_files import bare_name, find
from src.data.delimited import what_is_there
from src.data.event_log import READS, item_column, read_items, read_log
from src.data.interactions import Interactions
from src.data.settings import DatasetSettings
from src.data.tables import Table, is_table, open_table
from src.data.text_file import TextFile, TextForm

_log = get_logger(__name__)

#: What the columns of a log without names are taken for. Three could end with a time or with a rating.
_POSITIONS = {2: ("user", "item"), 4: ("user", "item", "rating", "time")}


def load(settings: DatasetSettings, through: Callable[[Table], Table] = lambda log: log) -> Interactions:
    """Read the log that ``interactions_file`` names, or the only one in ``root``, and the items' file beside it.

    ``through`` may put another way of reading in front of the opened log.
    """
    log_path, items_path = _paths(settings)
    if settings.interactions_file is None and settings.root.is_dir():
        told = f"the items' file {items_path.name}" if items_path else "there is no items' file"
        _log.info("%s: the log is %s, %s", settings.root, log_path.name, told)
    log = through(open_table(log_path, _form(settings, settings.header)))
    items = None if items_path is None else open_table(items_path, _form(settings, ()))
    return from_tables(log, items, settings)


def files(settings: DatasetSettings) -> list[Path]:
    """The log and the items' file."""
    return [path for path in _paths(settings) if path is not None]


def from_tables(log: Table, items: Table | None, settings: DatasetSettings) -> Interactions:
    """Interactions of an opened log; the columns that were guessed are printed.

    Args:
        log: the interactions' columns.
        items: the item file's columns; None where there is none.
        settings: the dataset's.
    """
    columns = log_columns(log, settings, with_title=items is None)
    rows = None if items is None else read_items(items, settings, item_column(items, settings, columns["item"]))
    return read_log(log, columns, rows, settings)


def log_columns(log: Table, settings: DatasetSettings, with_title: bool) -> dict[str, str]:
    """The columns of a log by role.

    Raises ``ConfigError`` where one that is needed is not found.

    Args:
        log: the interactions' columns.
        settings: which columns were named, and which rows count.
        with_title: whether titles are looked for in the log.
    """
    timed = ("time",) if settings.order == "time" else ()
    optional = ("rating", *(("title",) if with_title else ()))
    given = settings.columns
    if isinstance(log, TextFile) and log.unnamed and given.user is None and given.item is None:
        given = _by_position(log, settings)
    elif not with_title and given.title is not None:
        given = replace(given, title=None)
    columns = resolve(given, log.names, log.label, ("user", "item", *timed), optional)
    told = ", ".join(f"{role} = {name}" for role, name in columns.items())
    if any(getattr(settings.columns, role) is None for role in columns):
        _log.info("%s: %s (dataset.columns.%s=NAME names another)", log.label, told, next(iter(columns)))
    return columns


def _by_position(log: TextFile, settings: DatasetSettings) -> Any:
    """Columns of a log without names: ``user item`` or ``user item rating time``."""
    roles = _POSITIONS.get(len(log.names))
    if roles is None:
        rule = f"{log.label} has no column names"
        step = "give them in their order: dataset.header=[user_id,item_id,timestamp]"
        raise ConfigError.one("dataset.header", [], rule, step)
    return replace(settings.columns, **dict(zip(roles, log.names, strict=True)))


def _form(settings: DatasetSettings, header: tuple[str, ...]) -> TextForm:
    return TextForm(settings.separator, settings.encoding, header)


def _paths(settings: DatasetSettings) -> tuple[Path, Path | None]:
    """The log and the items' file (None: there is none)."""
    root = settings.root
    if root.is_file():
        return root, None if settings.items_file is None else _under(root.parent, settings.items_file, "items_file")
    given_log = settings.interactions_file
    given_items = settings.items_file
    items = None if given_items is None else _under(root, given_items, "items_file")
    if given_log is not None:
        return _under(root, given_log, "interactions_file"), items
    if not root.is_dir():
        raise DataError.one("dataset.root", str(root), "does not exist", "name the log's file or its folder")
    log, found_items = guess_files(settings, items)
    return log, found_items if items is None else items


def _under(root: Path, name: str, key: str) -> Path:
    found = find(root / name)
    if found is None:
        raise DataError.one(f"dataset.{key}", str(root / name), "does not exist", what_is_there(root / name))
    return found


def guess_files(settings: DatasetSettings, items: Path | None) -> tuple[Path, Path | None]:
    """The log and the items' file of ``root``: the only ones whose columns tell so, or those named after the data set.

    Raises ``DataError`` where no file is a log, or several may be.
    """
    files = sorted(path for path in settings.root.iterdir() if path.is_file() and is_table(path) and path != items)
    opened: dict[Path, Table] = {}
    problems: list[Problem] = []
    for path in files:
        try:
            opened[path] = open_table(path, _form(settings, ()))
        except DataError as error:
            problems += error.problems  # a README, as a rule
    logs = [path for path, table in opened.items() if _is_log(table, settings)]
    if not logs and problems:
        raise DataError(problems)
    logs = _named_after(logs, settings.name)
    if len(logs) != 1:
        rule = "holds no log of interactions" if not logs else f"holds several: {', '.join(p.name for p in logs)}"
        there = ", ".join(f"{path.name} ({', '.join(table.names[:6])})" for path, table in list(opened.items())[:4])
        step = f"name it: dataset.interactions_file=FILE, and its columns: dataset.columns.user=…; there are {there}"
        raise DataError.one("dataset.root", str(settings.root), rule, step if opened else "put the log there")
    others = [path for path, table in opened.items() if path != logs[0] and _is_catalogue(table, settings)]
    others = _named_after(others, settings.name)
    if len(others) > 1:
        rule = f"several files may be the items': {', '.join(path.name for path in others)}"
        raise DataError([Problem("dataset.items_file", None, rule, "name one")])
    chosen = others[0] if others else None
    return logs[0], chosen


def _named_after(paths: list[Path], name: str) -> list[Path]:
    """Those that are called like the data set, where some are."""
    exact = [path for path in paths if bare_name(path) == name]
    same = exact or [path for path in paths if name in bare_name(path)]
    return same if len(paths) > 1 and same else paths


def _has(role: str, table: Table, settings: DatasetSettings) -> bool:
    named = getattr(settings.columns, role)
    return named in table.names if named is not None else guess(role, table.names) is not None


def _is_log(table: Table, settings: DatasetSettings) -> bool:
    if isinstance(table, TextFile) and table.unnamed:
        return len(table.names) in (2, 3, 4)
    if settings.header and isinstance(table, TextFile):
        return len(table.names) == len(settings.header)
    return _has("user", table, settings) and _has("item", table, settings)


def _is_catalogue(table: Table, settings: DatasetSettings) -> bool:
    has_id = _has("item", table, settings) or any(plain_name(name) in ("id", "index") for name in table.names)
    return has_id and guess("user", table.names) is None and _has("title", table, settings)


#: the settings that this adapter reads beside the shared ones
TABLE_READS = READS | {"interactions_file", "items_file"}

register("table", Adapter(load, TABLE_READS, files=files))
