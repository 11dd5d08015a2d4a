"""Timestamps in every unit and notation become the same seconds; what cannot be read is told in one line."""

from __future__ import annotations

import datetime
from typing import Any

import pyarrow as pa
import pytest

from src.core.errors import ConfigError, DataError
from src.data.timestamps import Timestamps, read_times

MOMENT = 1_500_000_319.0  # 2017-07-14 02:45:19 UTC
DAY = 1_499_990_400.0


def read(values: Any, time_format: str | None = None) -> Timestamps:
    column = pa.chunked_array([values if isinstance(values, pa.Array) else pa.array(values)])
    return read_times(column, "log.csv when", lambda row: f"a/log.csv line {row + 2}", time_format)


@pytest.mark.parametrize(
    ("value", "seconds", "notation"),
    [
        ("1500000319", MOMENT, "seconds"),
        (1500000319, MOMENT, "seconds"),
        ("1500000319000", MOMENT, "milliseconds"),
        (1500000319000000, MOMENT, "microseconds"),
        (1500000319000000000, MOMENT, "nanoseconds"),
        ("7", 7.0, "seconds"),
        ("1.5e9", 1.5e9, "seconds"),
        ("2017-07-14 02:45:19", MOMENT, "ISO dates"),
        ("2017-07-14T02:45:19Z", MOMENT, "ISO dates"),
        ("2017-07-14T04:45:19.500+02:00", MOMENT + 0.5, "ISO dates"),
        ("2017-07-14", DAY, "ISO dates"),
        ("Fri Jul 14 02:45:19 +0000 2017", MOMENT, "dates (%a %b %d %H:%M:%S %z %Y)"),
        ("Fri, 14 Jul 2017 02:45:19 GMT", MOMENT, "dates (%a, %d %b %Y %H:%M:%S %Z)"),
        ("14/07/2017 02:45:19", MOMENT, "dates (%d/%m/%Y %H:%M:%S)"),
        ("07/14/2017 2:45:19 AM", MOMENT, "dates (%m/%d/%Y %I:%M:%S %p)"),
        ("14.07.2017", DAY, "dates (%d.%m.%Y)"),
        ("07 14, 2017", DAY, "dates (%m %d, %Y)"),
        ("Jul 14, 2017", DAY, "dates (%b %d, %Y)"),
        ("20170714", DAY, "dates (%Y%m%d)"),
        (20170714024519, MOMENT, "dates (%Y%m%d%H%M%S)"),
        (datetime.datetime(2017, 7, 14, 2, 45, 19), MOMENT, "timestamp[us]"),
        (datetime.date(2017, 7, 14), DAY, "date32[day]"),
    ],
)
def test_one_moment_in_many_notations(value: Any, seconds: float, notation: str) -> None:
    times = read([value])
    assert times.seconds.tolist() == [seconds]
    assert times.notation == notation


def test_a_zone_of_an_arrow_column_counts() -> None:
    tokyo = datetime.timezone(datetime.timedelta(hours=9))
    values = pa.array([datetime.datetime(2017, 7, 14, 11, 45, 19, tzinfo=tokyo)])
    assert read(values).seconds.tolist() == [MOMENT]


def test_several_notations_in_one_column() -> None:
    times = read(["2017-07-14 02:45:19", "Fri Jul 14 02:45:19 +0000 2017", "1500000319", "1500000319000"])
    assert times.seconds.tolist()[:2] == [MOMENT, MOMENT]
    assert "ISO dates" in times.notation
    assert "%a %b %d" in times.notation


def test_one_day_above_twelve_tells_what_the_others_mean() -> None:
    assert read(["01/02/2017", "14/02/2017"]).seconds.tolist() == [1_485_907_200.0, 1_487_030_400.0]


def test_a_notation_that_the_user_names() -> None:
    assert read(["14.07.17"], "%d.%m.%y").seconds.tolist() == [DAY]


def test_a_format_or_a_column_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"dataset.time_format = '%Q': is no format of times"):
        read(["1"], "%Q")
    with pytest.raises(DataError, match=r"is a column of struct.*, not of times"):
        read([{"a": 1}])
    assert read(pa.array([datetime.timedelta(seconds=3)])).seconds.tolist() == [3.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            ["1", "soon", "nan", "", "soon"],
            r"\['soon', 'nan', ''\]: 4 of 5 values are neither .*line 3, log.csv line 4",
        ),
        (["01/02/2017", "03/04/2017"], r"can be read day first or month first → say which: dataset.time_format"),
        (["14/02/2017", "02/14/2017"], "some dates have the day first, others the month"),
        (pa.array([datetime.datetime(2017, 1, 1), None]), r"'': 1 of 2 values are empty .*log.csv line 3"),
        (pa.array([1.0, None]), "1 of 2 values"),
    ],
)
def test_what_cannot_be_read(values: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(values)
