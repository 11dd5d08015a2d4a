"""Times as sources write them — numbers of several units, dates of several notations — as seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from src.core.errors import ConfigError, DataError, Problem

_CHUNK = 500_000
_SHOWN = 3

#: Numbers from here on are of this unit: 1e11 s is the year 5138, 1e11 ms is 1973.
_UNITS = ((1e17, "nanoseconds", 1e9), (1e14, "microseconds", 1e6), (1e11, "milliseconds", 1e3))

#: Notations beside ISO 8601 in which only one reading is possible.
_FORMATS = (
    "%a %b %d %H:%M:%S %z %Y",  # Goodreads, Twitter
    "%a, %d %b %Y %H:%M:%S %z",  # mail
    "%a, %d %b %Y %H:%M:%S %Z",
    "%a %b %d %H:%M:%S %Y",
    "%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y/%m/%d",
    "%Y.%m.%d %H:%M:%S", "%Y.%m.%d",
    "%d %b %Y %H:%M:%S", "%d %b %Y, %H:%M", "%d %b %Y", "%d-%b-%Y %H:%M:%S", "%d-%b-%Y", "%d %B %Y",
    "%b %d, %Y %H:%M:%S", "%b %d, %Y", "%B %d, %Y", "%m %d, %Y",  # the last one is Amazon's
    "%Y年%m月%d日 %H:%M:%S", "%Y年%m月%d日",
)  # fmt: skip
#: Notations that can be read day first or month first: the values of the whole column decide.
_EITHER = ("%H:%M:%S", "%H:%M", "%I:%M:%S %p", "%I:%M %p", "")


@dataclass(frozen=True, eq=False)
class Timestamps:
    """``seconds`` ``[N]`` float64, and how the source writes them, for a line on the screen."""

    seconds: NDArray[np.float64]
    notation: str


def read_times(
    column: pa.ChunkedArray, name: str, where: Callable[[int], str], time_format: str | None = None
) -> Timestamps:
    """A column of times as seconds since 1970 in UTC; times without a zone are taken as UTC.

    Args:
        column: numbers, dates, or text that holds either.
        name: how messages call the column, with its file.
        where: a row as a person finds it.
        time_format: as ``strptime`` writes it, where the notation is known; None: found from the values.

    Raises:
        DataError: some values are neither a number nor a date, or dates can be read in two ways.
    """
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return Timestamps(_from_timestamps(column, name, where), f"{kind}")
    if pa.types.is_duration(kind):
        column = column.cast(pa.duration("us")).cast(pa.int64())
        return Timestamps(column.to_numpy() / 1e6, f"{kind}")
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        numbers = column.cast(pa.float64(), safe=False).to_numpy()
        bad = numbers[~np.isfinite(numbers)]
        _require(np.isfinite(numbers), ["" if np.isnan(value) else str(value) for value in bad], name, where)
        return _in_seconds(np.array(numbers, dtype=np.float64))
    try:
        texts = column.cast(pa.string())
    except pa.ArrowException:
        shown = [str(value) for value in column.slice(0, _SHOWN).to_pylist()]
        raise DataError.one(name, shown, f"is a column of {kind}, not of times", "name another column") from None
    if time_format is not None:
        _check_format(time_format)
    return _from_text(texts, name, where, time_format)


def _check_format(time_format: str) -> None:
    try:
        pd.to_datetime(pd.Series(["x"]), format=time_format, errors="coerce")
    except (ValueError, KeyError) as error:
        step = "write it as strptime does: '%d/%m/%Y %H:%M'"
        raise ConfigError.one("dataset.time_format", time_format, f"is no format of times ({error})", step) from None


def _from_timestamps(column: pa.ChunkedArray, name: str, where: Callable[[int], str]) -> NDArray[np.float64]:
    stamps = column.cast(pa.timestamp("us", getattr(column.type, "tz", None)), safe=False)
    missing = stamps.is_null().to_numpy()
    _require(~missing, [""] * int(missing.sum()), name, where)
    seconds: NDArray[np.float64] = stamps.cast(pa.int64()).to_numpy() / 1e6
    return seconds


def _from_text(column: pa.ChunkedArray, name: str, where: Callable[[int], str], time_format: str | None) -> Timestamps:
    if time_format is None:
        try:
            numbers = np.array(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
        except pa.ArrowInvalid:
            numbers = None
        if numbers is not None and np.isfinite(numbers).all():
            return _in_seconds(numbers)
    seconds = np.full(len(column), np.nan)
    notations: dict[str, None] = {}
    for start in range(0, len(column), _CHUNK):
        part = column.slice(start, _CHUNK).to_pandas().fillna("").astype(object).str.strip()
        seconds[start : start + len(part)] = _parse(part, time_format, notations)
    left = np.flatnonzero(np.isnan(seconds))
    if len(left) and time_format is None:
        rest = column.take(pa.array(left)).to_pandas().fillna("").astype(object).str.strip()
        seconds[left] = _day_or_month_first(rest, name, notations)
    bad = np.flatnonzero(np.isnan(seconds))
    _require(~np.isnan(seconds), [str(value or "") for value in column.take(pa.array(bad)).to_pylist()], name, where)
    return Timestamps(seconds, " and ".join(notations))


def _parse(values: pd.Series, time_format: str | None, notations: dict[str, None]) -> NDArray[np.float64]:
    """Seconds, and NaN where no notation fits; each notation that fits some value is noted."""
    seconds = np.full(len(values), np.nan)
    formats: Sequence[str] = ("ISO8601", *_FORMATS) if time_format is None else (time_format,)
    if time_format is None:
        numbers = pd.to_numeric(values, errors="coerce").to_numpy(np.float64)
        found = np.isfinite(numbers)
        if found.any():
            scaled = _in_seconds(numbers[found])
            seconds[found] = scaled.seconds
            notations[scaled.notation] = None
    for notation in formats:
        left = np.flatnonzero(np.isnan(seconds))
        if not len(left):
            break
        found_seconds = _seconds(values.iloc[left], notation)
        if np.isfinite(found_seconds).any():
            notations["ISO dates" if notation == "ISO8601" else f"dates ({notation})"] = None
        seconds[left] = found_seconds
    return seconds


def _seconds(values: pd.Series, notation: str) -> NDArray[np.float64]:
    stamps = pd.DatetimeIndex(pd.to_datetime(values, format=notation, utc=True, errors="coerce"))
    whole = stamps.tz_localize(None).to_numpy().astype("datetime64[us]").astype(np.int64)
    return np.where(stamps.isna(), np.nan, whole / 1e6)


def _day_or_month_first(values: pd.Series, name: str, notations: dict[str, None]) -> NDArray[np.float64]:
    """Dates such as ``14/07/2017``: one value above 12 tells which number is the day."""
    seconds = np.full(len(values), np.nan)
    parts = values.str.extract(r"^(\d{1,2})([/.-])(\d{1,2})\2(\d{4})(?:[ T,]+(.*))?$")
    fits = parts[0].notna().to_numpy()
    if not fits.any():
        return seconds
    first, second = (pd.to_numeric(parts[place], errors="coerce").to_numpy(np.float64) for place in (0, 2))
    fits = fits & ((first <= 12) | (second <= 12))  # 31/31/2024 is no date, and tells nothing of the others
    if not fits.any():
        return seconds
    day_first, month_first = bool((first[fits] > 12).any()), bool((second[fits] > 12).any())
    if day_first == month_first:
        shown = values[fits].drop_duplicates().head(_SHOWN).tolist()
        rule = (
            "these dates can be read day first or month first"
            if not day_first
            else "some dates have the day first, others the month"
        )
        raise DataError.one(name, shown, rule, "say which: dataset.time_format='%d/%m/%Y'")
    order = "%d{0}%m{0}%Y" if day_first else "%m{0}%d{0}%Y"
    for mark in ("/", ".", "-"):
        for clock in _EITHER:
            left = np.flatnonzero(np.isnan(seconds) & fits & (parts[1] == mark).to_numpy())
            if not len(left):
                break
            notation = f"{order.format(mark)} {clock}".strip()
            found = _seconds(values.iloc[left], notation)
            if np.isfinite(found).any():
                notations[f"dates ({notation})"] = None
            seconds[left] = found
    return seconds


def _in_seconds(numbers: NDArray[np.float64]) -> Timestamps:
    """Numbers as seconds: the unit is told from their size, and days written as 20170714 from what they are."""
    if not len(numbers):
        return Timestamps(numbers, "no times")
    dates = _compact_dates(numbers)
    if dates is not None:
        return dates
    middle = float(np.median(np.abs(numbers)))
    for least, unit, per_second in _UNITS:
        if middle >= least:
            return Timestamps(numbers / per_second, unit)
    return Timestamps(numbers, "seconds")


def _compact_dates(numbers: NDArray[np.float64]) -> Timestamps | None:
    """``20170714`` and ``20170714024519``; None unless every number is such a date of the years 1990 to 2099."""
    for digits, notation in ((8, "%Y%m%d"), (14, "%Y%m%d%H%M%S")):
        scale = 10.0 ** (digits - 8)
        if not 19900101 <= numbers[0] // scale <= 20991231:
            continue  # as a rule
        days = np.floor(numbers / scale)
        month, day = days // 100 % 100, days % 100
        if (
            ((days >= 19900101) & (days <= 20991231)).all()
            and ((month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all()
            and (numbers == np.floor(numbers)).all()
        ):
            seconds = _seconds(pd.Series(numbers.astype(np.int64).astype(str)), notation)
            return Timestamps(seconds, f"dates ({notation})") if np.isfinite(seconds).all() else None
    return None


def _require(good: NDArray[np.bool_], values: Sequence[str], name: str, where: Callable[[int], str]) -> None:
    bad = np.flatnonzero(~good)
    if not len(bad):
        return
    counts = Counter(values)
    shown = list(counts)[:_SHOWN]
    places = ", ".join(where(int(row)).rpartition("/")[2] for row in bad[:_SHOWN])
    if not any(text.strip() for text in counts):
        rule, step = f"{len(bad):,} of {len(good):,} values are empty ({places})", "mend or remove these rows"
        if len(bad) == len(good):
            step = "the column holds no time: name another one"
        raise DataError([Problem(name, "", rule, step)])
    groups = f", {len(counts):,} different ones" if len(counts) > _SHOWN else ""
    rule = f"{len(bad):,} of {len(good):,} values are neither a number nor a date{groups} ({places})"
    step = "mend or remove these rows, or say how dates are written: dataset.time_format='%d/%m/%Y %H:%M'"
    raise DataError([Problem(name, shown, rule, step)])
