"""A table in memory as RecBole's two atomic files, which the command line can read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from src.core.errors import ConfigError, DataError, Problem
from src.data.arrow_columns import as_ids
from src.data.event_log import plain_id
from src.data.tables import MemoryTable, from_memory
from src.data.timestamps import read_times

_TABLE = "table"


def atomic_files(frame: Any, columns: Mapping[str, Any], time_format: str | None = None) -> tuple[str, str]:
    """The content of the two files: interactions, and items with their titles.

    Args:
        frame: pandas, polars or pyarrow, a row for each interaction.
        columns: the columns of ``user``, ``item`` and ``time``, and where there are such of ``title`` and ``rating``.
        time_format: how dates are written, as `dataset.time_format` says it.

    Raises:
        ConfigError: a column is not there.
        DataError: it is no table or has no rows, a value is missing, a time cannot be read, or an id holds a tab or a
            line break.
    """
    table = from_memory(_TABLE, frame)
    missing = [
        Problem(role, column, "is no column of the table", f"use one of {', '.join(table.names)}")
        for role, column in columns.items()
        if str(column) not in table.names
    ]
    if missing:
        raise ConfigError(missing)
    if not table.table.num_rows:
        raise DataError.one(_TABLE, 0, "holds no rows", "pass a table with a row for each interaction")
    names = {role: str(column) for role, column in columns.items()}
    users, items = (_ids(table, names[role]) for role in ("user", "item"))
    log = {"user_id:token": users, "item_id:token": items, "timestamp:float": _seconds(table, names, time_format)}
    if "rating" in names:
        log["rating:float"] = _ratings(table, names["rating"])
    titles = _titles(table, names["title"]) if "title" in names else pd.Series("", index=users.index)
    listed = pd.DataFrame({"item_id:token": items, "title:token_seq": titles}).drop_duplicates("item_id:token")
    return _as_text(pd.DataFrame(log)), _as_text(listed)


def _ids(table: MemoryTable, column: str) -> pd.Series:
    texts = _texts(table, column, plain_id)
    _refuse_empty(texts == "", column)
    bad = [text for text in dict.fromkeys(texts) if any(mark in text for mark in "\t\r\n")]
    if bad:
        rule = f"{len(bad)} ids hold a tab or a line break"
        raise DataError.one(column, bad[0], rule, "mend these ids")
    return pd.Series(texts)


def _texts(table: MemoryTable, column: str, spell: Callable[[str], str]) -> NDArray[np.object_]:
    """A column of any type as text, "" where there is nothing; each distinct value is spelled once."""
    encoded = as_ids(table.table.column(column)).unify_dictionaries().combine_chunks()
    spelled = [spell(text or "") for text in encoded.dictionary.to_pylist()]
    places = encoded.indices.fill_null(len(spelled)).to_numpy(zero_copy_only=False)
    return np.array([*spelled, ""], dtype=object)[places]


def _titles(table: MemoryTable, column: str) -> pd.Series:
    texts = pd.Series(_texts(table, column, lambda text: " ".join(text.split())))
    if (texts == "").all():
        raise DataError.one(column, "", "the column of titles is empty", "name another one, or title=None")
    return texts


def _seconds(table: MemoryTable, names: Mapping[str, str], time_format: str | None) -> pd.Series:
    column = names["time"]
    return pd.Series(read_times(table.table.column(column), column, lambda row: f"row {row}", time_format).seconds)


def _ratings(table: MemoryTable, column: str) -> pd.Series:
    values = table.table.column(column)
    try:
        numbers = values.cast(pa.float64()).to_pandas()
    except pa.ArrowException:
        numbers = pd.to_numeric(values.to_pandas().astype(object), errors="coerce")
    bad = ~np.isfinite(numbers.to_numpy(np.float64, na_value=np.nan))
    if bad.any():
        row = int(bad.argmax())
        rule = f"{int(bad.sum()):,} of {len(bad):,} ratings are no numbers (row {row} is the first)"
        raise DataError.one(column, str(values[row].as_py() or ""), rule, "mend or drop these rows, or rating=None")
    return numbers


def _refuse_empty(empty: NDArray[np.bool_], column: str) -> None:
    if empty.any():
        rows = ", ".join(f"row {int(row)}" for row in np.flatnonzero(empty)[:3])
        rule = f"{int(empty.sum()):,} of {len(empty):,} values are empty ({rows})"
        raise DataError.one(column, "", rule, "mend or drop these rows")


def _as_text(frame: pd.DataFrame) -> str:
    """Tab-separated, without quotes: no value holds a tab or a line break."""
    columns = [frame[name].map(repr if frame[name].dtype.kind == "f" else str) for name in frame.columns]
    lines = ["\t".join(frame.columns), *map("\t".join, zip(*columns, strict=True))]
    return "\n".join(lines) + "\n"
