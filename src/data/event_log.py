"""From the columns of a log, and what is known of its items, to `Interactions`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from src.core.errors import DataError, Problem, ProblemsFound
from src.core.logging import get_logger
from src.data.arrow_columns import as_ids
from src.data.catalogue import ItemRows, build_id_map, each_once, tell_unlisted, wanted_fields, with_unlisted
from src.data.columns import guess, plain_name, resolve
from src.data.delimited import limited
from src.data.interactions import Interactions
from src.data.settings import DatasetSettings
from src.data.tables import Table
from src.data.timestamps import read_times

_log = get_logger(__name__)

#: The settings that whoever reads a log through this module reads.
READS = frozenset(
    {"columns", "header", "separator", "encoding", "order", "time_format", "item_text"}
)  # fmt: skip

_WHOLE = re.compile(r"^(-?\d+)\.0+$")


def plain_id(raw: str) -> str:
    """An id as text: stripped, and ``12.0`` — a whole number that some program saved as a fraction — as ``12``."""
    text = raw.strip()
    match = _WHOLE.match(text)
    return match[1] if match else text


def read_log(
    table: Table,
    columns: Mapping[str, str],
    items: ItemRows | None,
    settings: DatasetSettings,
) -> Interactions:
    """Interactions in file order.

    Args:
        table: the log.
        columns: which of its columns is ``user``, ``item``, ``time`` (may be missing where the order is the file's),
            ``rating`` and ``title``.
        items: what an item file says; it fixes the order of items, those that it does not list follow. None: there is
            no such file.
        settings: order, notation of times, what becomes of untitled items.

    Raises:
        DataError: empty ids, times that cannot be read, an empty log, all together.
    """
    title = columns.get("title") if items is None else None
    values = [columns[role] for role in ("time", "rating") if role in columns]
    read = table.read([columns["user"], columns["item"], *([title] if title else [])], values)
    problems: list[Problem] = []
    if not read.num_rows:
        raise DataError.one("file", table.label, "holds no rows", "is it the right file?")
    users, _ = _codes(read, "user", columns, table, problems)
    item_codes, raw_items = _codes(read, "item", columns, table, problems)
    # at twenty million rows what is not read again is worth giving back
    read = read.drop_columns(list({columns["user"], columns["item"]} - {title, *values}))
    timestamps = _timestamps(read, columns.get("time"), table, settings, problems)
    ratings = (
        _ratings(read.column(columns["rating"]), table, columns["rating"], settings, problems)
        if "rating" in columns
        else None
    )
    if problems:
        raise DataError(problems)
    if items is None:
        titles = _titles_in_log(item_codes, len(raw_items), read.column(title), title) if title else None
        if titles is not None and settings.columns.title is not None:
            _require_some(titles, table, columns["title"])
        items = ItemRows(table.label, raw_items, titles)
    rows, unlisted = with_unlisted(each_once(items), raw_items)
    place = {raw: number for number, raw in enumerate(rows.raw_ids)}
    index = np.array([place[raw] for raw in raw_items], dtype=np.int64)[item_codes]
    if unlisted and items.titles is not None:
        tell_unlisted(rows, unlisted, int((index >= len(rows.raw_ids) - len(unlisted)).sum()), settings)
    return Interactions(settings.name, users, index, timestamps, ratings, build_id_map(rows, settings))


def _codes(
    read: pa.Table, role: str, columns: Mapping[str, str], table: Table, problems: list[Problem]
) -> tuple[NDArray[np.int64], list[str]]:
    """A column of ids as codes in order of first appearance, and the ids; empty ones become problems."""
    column = as_ids(read.column(columns[role])).unify_dictionaries()
    dictionary = column.chunk(0).dictionary.to_pylist() if column.num_chunks else []
    texts = [plain_id(raw or "") for raw in dictionary]
    raw_codes = np.concatenate(
        [chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in column.chunks]
    ).astype(np.int64)
    one, kept = pd.factorize(np.array([*texts, ""], dtype=object))
    codes, order = pd.factorize(one[raw_codes])
    ids = [str(kept[place]) for place in order]
    if "" in ids:
        problems += _empty(np.flatnonzero(codes == ids.index("")), len(codes), table, role, columns[role])
    return codes.astype(np.int64), ids


def _empty(bad: NDArray[np.int64], rows: int, table: Table, role: str, name: str) -> list[Problem]:
    """What is told of rows without an id: each of the first, or once where no row has one."""
    label = f"{table.label} {name}"
    if len(bad) == rows:
        step = f"name another column: dataset.columns.{role}=NAME; the columns are {', '.join(table.names)}"
        return [Problem(label, "", f"the column is empty in all of {rows:,} rows", step)]
    step = "mend or remove this row"
    found = [Problem(table.where(int(row)), "", f"{name} must not be empty", step) for row in bad[:5]]
    more = [Problem(label, f"{len(bad) - 5:,} more", "of the same kind", "mend or remove these rows")]
    return [*found, *more] if len(bad) > 5 else found


def _timestamps(
    read: pa.Table, name: str | None, table: Table, settings: DatasetSettings, problems: list[Problem]
) -> NDArray[np.float64]:
    if settings.order == "file" or name is None:
        return np.arange(read.num_rows, dtype=np.float64)
    try:
        times = read_times(read.column(name), f"{table.label} {name}", table.where, settings.time_format)
    except ProblemsFound as error:
        problems += error.problems
        return np.zeros(read.num_rows)
    if times.notation != "seconds":
        _log.info("%s: times in %s are read as %s", table.label, name, times.notation)
    return times.seconds


def _ratings(
    column: pa.ChunkedArray, table: Table, name: str, settings: DatasetSettings, problems: list[Problem]
) -> NDArray[np.float32] | None:
    """Ratings, NaN where there is none: that matters only where ``min_rating`` compares with them."""
    try:
        numbers = column.cast(pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        numbers = pd.to_numeric(column.to_pandas().astype(object), errors="coerce").to_numpy(np.float64)
    with np.errstate(over="ignore"):
        ratings = numbers.astype(np.float32)
    ratings[~np.isfinite(ratings)] = np.nan
    bad = np.flatnonzero(np.isnan(ratings))
    if len(bad) == len(numbers) and settings.columns.rating is not None:
        step = "name another column, or none: dataset.columns.rating=null; the columns are " + ", ".join(table.names)
        problems.append(Problem(f"{table.label} {name}", "", "dataset.columns.rating holds no number at all", step))
    elif len(bad) and settings.min_rating is not None:
        rule = f"{name} must be a finite number, for dataset.min_rating compares with it"
        rows = [Problem(table.where(int(row)), str(column[int(row)].as_py() or ""), rule) for row in bad[:5]]
        more = [Problem(f"{table.label} {name}", f"{len(bad) - 5} more", "of the same kind")] if len(bad) > 5 else []
        problems += [*rows, *more]
    elif len(bad):
        _log.info(
            "%s: %s of %s ratings are no numbers; nothing reads them", table.label, f"{len(bad):,}", f"{len(numbers):,}"
        )
    if len(bad) == len(numbers):
        return None
    return ratings


def _require_some(titles: Sequence[str], table: Table, name: str) -> None:
    """Raises ``DataError`` where a column that the user named as titles has none."""
    if not any(text.strip() for text in titles):
        rule = "dataset.columns.title is empty in all rows"
        step = "name another column, or none: dataset.columns.title=null; the columns are " + ", ".join(table.names)
        raise DataError.one(f"{table.label} {name}", "", rule, step)


def _titles_in_log(codes: NDArray[np.int64], count: int, column: pa.ChunkedArray, name: str) -> list[str]:
    """Each item's title as its first row has it."""
    column = as_ids(column).unify_dictionaries()
    dictionary = [text or "" for text in column.chunk(0).dictionary.to_pylist()]
    raw = np.concatenate([chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in column.chunks])
    first = np.full(count, -1, dtype=np.int64)
    rows = np.arange(len(codes))[::-1]
    first[codes[rows]] = raw[rows]
    other = np.unique(codes[raw != first[codes]])
    if len(other):
        _log.warning("column %s: %s items have more than one title; the first one counts", name, f"{len(other):,}")
    dictionary.append("")
    return [dictionary[place] for place in first]


def item_column(table: Table, settings: DatasetSettings, log_item: str) -> str:
    """The column of ids in an item file: called as in the log, known as one, or just ``id``.

    Raises ``ConfigError`` where there is none.

    Args:
        table: the item file's columns.
        settings: which columns were named.
        log_item: what the log calls the item's id.
    """
    names = table.names
    same = [name for name in names if plain_name(name) == plain_name(log_item)]
    ids = [name for name in names if plain_name(name) in ("id", "index")]
    found = same[0] if same else guess("item", names) or (ids[0] if ids else None)
    return found or resolve(settings.columns, names, table.label, ("item",), ())["item"]


def read_items(table: Table, settings: DatasetSettings, item: str, title: str | None = None) -> ItemRows:
    """What an item file says of each item: ids, titles, and the fields that ``item_text`` names.

    ``item`` and ``title`` are columns; title None: the settings and common names decide, and it may be missing.
    Raises ``ConfigError`` for columns that are not there, ``DataError`` for empty ids.

    Args:
        table: the item file's columns.
        settings: which columns were named, and the template of the text.
        item: the column of ids.
        title: the column of titles.
    """
    if title is None:
        named = settings.columns.title is not None  # what is guessed is never the ids
        others = table.names if named else [name for name in table.names if name != item]
        title = resolve(settings.columns, others, table.label, (), ("title",)).get("title")
    fields = wanted_fields(settings, table.names)
    wanted = [*([title] if title else []), *fields.values()]
    read = table.read([], [item, *wanted])
    texts = {name: _texts(read.column(name)) for name in dict.fromkeys([item, *wanted])}
    raw_ids = [plain_id(raw) for raw in texts[item]]
    if "" in raw_ids:
        bad = [row for row, raw in enumerate(raw_ids) if not raw]
        rule = f"{item} must not be empty"
        raise DataError(limited([Problem(table.where(row), "", rule) for row in bad], table.label))
    columns = {name: texts[column] for name, column in fields.items()}
    titles = texts[title] if title else None
    if titles is not None and settings.columns.title is not None:
        _require_some(titles, table, title or "")
    return ItemRows(table.label, raw_ids, titles, columns, _Places(table, len(raw_ids)), table.names)


def _texts(column: pa.ChunkedArray) -> list[str]:
    if pa.types.is_nested(column.type):
        return [", ".join(str(part) for part in value or ()) for value in column.to_pylist()]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return [text or "" for text in pc.fill_null(column.cast(pa.string()), "").to_pylist()]


class _Places(Sequence[str]):
    """Where the rows of a table stand, looked for only when a message needs it."""

    def __init__(self, table: Table, count: int) -> None:
        self._table, self._count = table, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> str:  # type: ignore[override]
        return self._table.where(row)
