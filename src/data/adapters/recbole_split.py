"""RecBole's benchmark split: ``<name>.train.inter``, ``<name>.valid.inter`` and ``<name>.test.inter``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from src.core.errors import ConfigError, DataError, Problem
from src.data.arrow_columns import as_ids
from src.data.catalogue import ItemRows, build_id_map, each_once, tell_unlisted, with_unlisted
from src.data.columns import plain_name, resolve
from src.data.compressed_files import find
from src.data.event_log import plain_id
from src.data.pre_split import PreSplit
from src.data.sequence_table import NO_ID, SequenceTable
from src.data.settings import DatasetSettings
from src.data.tables import Table, open_table
from src.data.text_file import TextForm
from src.data.timestamps import read_times

#: How RecBole calls the files of our splits.
SPLIT_FILES: Mapping[str, str] = {"train": "train", "validation": "valid", "test": "test"}

_LISTS = ("itemidlist", "itemlist", "itemseq", "history")


def load_split(settings: DatasetSettings, items: ItemRows | None) -> PreSplit:
    """The three files as they are split.

    A row is a history (``item_id_list``) and the item that came next; or, where there is no such list, an interaction,
    whose history is what its user did in the rows and files before it.
    """
    opened = {split: _open(settings, part) for split, part in SPLIT_FILES.items()}
    columns = {split: _columns(settings, table) for split, table in opened.items()}
    lists = {split: _list_column(table) for split, table in opened.items()}
    if len({column is None for column in lists.values()}) > 1:
        without = next(table.label for split, table in opened.items() if lists[split] is None)
        raise DataError.one("file", without, "has no item_id_list, which the other files have")
    targets = {split: _ids(opened[split], columns[split]["item"]) for split in opened}
    histories = {split: _lists(opened[split], name) for split, name in lists.items() if name is not None}
    raw = list(
        dict.fromkeys(value for ids in (*targets.values(), *(h[0] for h in histories.values())) for value in ids)
    )
    problems = [
        Problem(table.label, "", "holds an empty item id") for split, table in opened.items() if "" in targets[split]
    ]
    if problems:
        raise DataError(problems)
    known = each_once(items or ItemRows(settings.name, [], None))
    met = set(raw)
    known = known.only([row for row, value in enumerate(known.raw_ids) if value in met])
    rows, unlisted = with_unlisted(known, raw)
    place = {value: number for number, value in enumerate(rows.raw_ids)}
    if unlisted and items is not None and items.titles is not None:
        gone = set(unlisted)
        tell_unlisted(rows, unlisted, sum(value in gone for ids in targets.values() for value in ids), settings)
    index = {split: np.array([place[value] for value in ids], np.int64) for split, ids in targets.items()}
    if histories:
        flat = {
            split: (np.array([place[value] for value in ids], np.int64), sizes)
            for split, (ids, sizes) in histories.items()
        }
    else:
        flat = _grown(settings, opened, columns, index)
    tables = {
        split: _table(Path(opened[split].label), flat[split][0], flat[split][1], index[split]) for split in opened
    }
    return PreSplit(settings.name, build_id_map(rows, settings), tables)


def _open(settings: DatasetSettings, part: str) -> Table:
    path = find(settings.root / f"{settings.name}.{part}.inter")
    assert path is not None  # `is_split` has looked
    return open_table(path, TextForm(settings.separator, settings.encoding))


def _columns(settings: DatasetSettings, table: Table) -> dict[str, str]:
    return resolve(settings.columns, table.names, table.label, ("user", "item"), ("time",))


def _list_column(table: Table) -> str | None:
    return next((name for name in table.names if plain_name(name) in _LISTS), None)


def _ids(table: Table, column: str) -> list[str]:
    encoded = as_ids(table.read([column], []).column(0)).unify_dictionaries()
    if not encoded.num_chunks or not len(encoded):
        raise DataError.one("file", table.label, "holds no rows", "is it the right file?")
    plain_ids = [plain_id(value or "") for value in encoded.chunk(0).dictionary.to_pylist()]
    codes = np.concatenate([chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in encoded.chunks])
    return [plain_ids[code] if code >= 0 else "" for code in codes]


def _lists(table: Table, column: str) -> tuple[list[str], NDArray[np.int64]]:
    """All histories one after the other, and the length of each; ids are separated by blanks."""
    texts = pc.utf8_trim_whitespace(table.read([], [column]).column(0).cast(pa.string())).combine_chunks()
    parts = pc.split_pattern(texts, " ")
    sizes = np.where(pc.equal(texts, "").to_numpy(zero_copy_only=False), 0, pc.list_value_length(parts).to_numpy())
    return [plain_id(value) for value in parts.flatten().to_pylist() if value], sizes.astype(np.int64)


def _grown(
    settings: DatasetSettings,
    opened: Mapping[str, Table],
    columns: Mapping[str, Mapping[str, str]],
    index: Mapping[str, NDArray[np.int64]],
) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Histories from interactions: what a user did in the rows and files before, in time where the files have it."""
    users: list[str] = []
    items: list[NDArray[np.int64]] = []
    found = {}
    for split, table in opened.items():
        own = columns[split]
        new = _ids(table, own["user"])
        times = np.zeros(len(new))
        if "time" in own:
            column = table.read([], [own["time"]]).column(0)
            times = read_times(column, f"{table.label} {own['time']}", table.where, settings.time_format).seconds
        elif settings.order == "time" and settings.columns.time is not None:
            raise ConfigError.one("dataset.columns.time", settings.columns.time, f"is no column of {table.label}")
        before = len(users)
        users += new
        items.append(index[split])
        codes = pd.factorize(np.array(users, dtype=object))[0]
        clock = np.concatenate([np.full(before, -np.inf), times])
        found[split] = _before(codes, np.concatenate(items), clock, before, max(settings.window, settings.min_history))
    return found


def _before(
    users: NDArray[np.int64], items: NDArray[np.int64], clock: NDArray[np.float64], first: int, most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row from ``first`` on: the last ``most`` items of its user before it, one row's after the other's."""
    order = np.lexsort((np.arange(len(users)), clock, users))
    seen: dict[int, list[int]] = {}
    histories: dict[int, list[int]] = {}
    for row in order.tolist():
        past = seen.setdefault(int(users[row]), [])
        if row >= first:
            histories[row] = past[-most:]
        past.append(int(items[row]))
    rows = [histories[row] for row in range(first, len(users))]
    sizes = np.array([len(row) for row in rows], np.int64)
    return np.array([item for row in rows for item in row], np.int64), sizes


def _table(path: Path, flat: NDArray[np.int64], sizes: NDArray[np.int64], target: NDArray[np.int64]) -> SequenceTable:
    """Rows of ids as a rectangle without padding's meaning: cells behind a history hold nothing."""
    cells = np.full((len(sizes), int(sizes.max(initial=0))), NO_ID, dtype=np.int64)
    cells[np.arange(cells.shape[1])[None, :] < sizes[:, None]] = flat
    return SequenceTable(path, cells, sizes, target, None)
