"""A table in memory as RecBole's two atomic files, which the command line can read."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from src.core.errors import ConfigError, DataError, Problem
from src.data.id_map import raw_text


def atomic_files(table: pd.DataFrame, columns: Mapping[str, str]) -> tuple[str, str]:
    """The content of the two files: interactions, and items with their titles.

    Args:
        table: a row for each interaction.
        columns: the columns of ``user``, ``item`` and ``time``, and where there are such of ``title`` and ``rating``.

    Raises:
        ConfigError: a column is not there.
        DataError: a value is missing, a time cannot be read, or an id holds a tab or a line break.
    """
    missing = [
        Problem(role, column, "is no column of the table", f"use one of {', '.join(map(str, table.columns))}")
        for role, column in columns.items()
        if column not in table.columns
    ]
    if missing:
        raise ConfigError(missing)
    users, items = (_ids(table[columns[role]], columns[role]) for role in ("user", "item"))
    log = {"user_id:token": users, "item_id:token": items, "timestamp:float": _seconds(table, columns["time"])}
    if "rating" in columns:
        log["rating:float"] = pd.to_numeric(table[columns["rating"]], errors="coerce")
        _refuse_empty(log["rating:float"], columns["rating"], "is no number")
    titles = _titles(table[columns["title"]]) if "title" in columns else pd.Series("", index=table.index)
    listed = pd.DataFrame({"item_id:token": items, "title:token_seq": titles}).drop_duplicates("item_id:token")
    return _as_text(pd.DataFrame(log)), _as_text(listed)


def _ids(values: pd.Series, column: str) -> pd.Series:
    _refuse_empty(values, column, "is empty")
    found = values.map(raw_text)
    bad = found[found.str.contains(r"[\t\r\n]", regex=True) | (found == "")]
    if len(bad):
        raise DataError.one(column, str(bad.iloc[0]), f"{len(bad)} ids are empty or hold a tab or a line break")
    return found


def _titles(values: pd.Series) -> pd.Series:
    return values.fillna("").astype(str).str.split().str.join(" ")


def _seconds(table: pd.DataFrame, column: str) -> pd.Series:
    given = table[column]
    found, kind = given, pd.api.types
    if not kind.is_numeric_dtype(given):
        dates = kind.is_datetime64_any_dtype(given)
        numbers = None if dates else pd.to_numeric(given, errors="coerce")
        if numbers is not None and numbers.notna().mean() > 0.5:
            found = numbers
        else:
            read = pd.to_datetime(given, errors="coerce", utc=True, format=None if dates else "ISO8601")
            found = (read - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
    _refuse_empty(found, column, "is empty or no time", given)
    return found


def _refuse_empty(values: pd.Series, column: str, rule: str, shown: pd.Series | None = None) -> None:
    empty = values.isna()
    if empty.any():
        example = (values if shown is None else shown)[empty].iloc[0]
        where = f"row {int(empty.to_numpy().argmax())} {rule}, and so are {int(empty.sum()) - 1} others"
        raise DataError.one(column, str(example), where, "mend or drop these rows")


def _as_text(frame: pd.DataFrame) -> str:
    """Tab-separated, without quotes: no value holds a tab or a line break."""
    columns = [frame[name].map(repr if frame[name].dtype.kind == "f" else str) for name in frame.columns]
    lines = ["\t".join(frame.columns), *map("\t".join, zip(*columns, strict=True))]
    return "\n".join(lines) + "\n"
