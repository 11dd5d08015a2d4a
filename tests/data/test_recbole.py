"""RecBole's atomic files: what is read, and what a user is told about a broken one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from src.core.errors import DataError, ProblemsFound
from src.data.adapters import recbole
from src.data.dataset import load_dataset
from src.data.interactions import Interactions
from src.data.settings import DatasetSettings
from tests.data.toy_sources import write_recbole

INTER = "item_id:token\tuser_id:token\ttimestamp:float\n"
ITEM = "item_id:token\tname:token_seq\trelease_year:token\n"


def _load(folder: Path, inter: str, item: str | None = None, title_year: bool = False) -> Interactions:
    (folder / "x.inter").write_bytes(inter.encode())
    if item is not None:
        (folder / "x.item").write_bytes(item.encode())
    return recbole.load(DatasetSettings(adapter="recbole", root=folder, name="x", title_year=title_year))


def _messages(error: pytest.ExceptionInfo[DataError]) -> list[str]:
    return [str(problem) for problem in error.value.problems]


def test_fields_in_any_order_without_ratings(tmp_path: Path) -> None:
    item = ITEM + "b\tFull Monty, The\t1997\na\tHeat\tunknown\n"
    log = _load(tmp_path, INTER + "a\tu2\t5\r\nb\tu1\t1.5e0\r\n", item)
    assert log.id_map.raw_ids == ("b", "a")
    assert log.id_map.titles == ("The Full Monty", "Heat")
    assert log.items.tolist() == [1, 0]
    assert log.users.tolist() == [0, 1]
    assert log.timestamps.tolist() == [5.0, 1.5]
    assert log.ratings is None


def test_the_release_year_by_option(tmp_path: Path) -> None:
    log = _load(tmp_path, INTER + "a\tu\t1\n", ITEM + "a\tFull Monty, The\t1997\nb\tHeat\tunknown\n", title_year=True)
    assert log.id_map.titles == ("The Full Monty (1997)", "Heat")


def test_without_an_item_file_there_are_no_titles(tmp_path: Path) -> None:
    log = _load(tmp_path, INTER + "a\tu\t1\nb\tu\t2\n")
    assert log.id_map.raw_ids == ("a", "b")
    assert log.id_map.untitled == 2


def test_broken_values_are_reported_together_with_their_lines(tmp_path: Path) -> None:
    lines = "a\tu\t1\nzz\tu\t2\na\t\t3\na\tu\tsoon\na\tu\tnan\n"
    with pytest.raises(DataError) as caught:
        _load(tmp_path, INTER + lines, ITEM + "a\tHeat\t1995\n")
    where = tmp_path / "x.inter"
    assert _messages(caught) == [
        f"{where} line 4 = '': user_id must not be empty → mend or remove this row",
        f"{where} timestamp = ['soon', 'nan']: 2 of 5 values are neither a number nor a date (x.inter line 5, x.inter "
        "line 6) → mend or remove these rows, or say how dates are written: dataset.time_format='%d/%m/%Y %H:%M'",
    ]


def test_lines_with_missing_and_additional_fields(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        _load(tmp_path, INTER + "a\tu\t1\na\tu\n\na\tu\t1\t9\na\tu\t2\n")
    assert [problem.field.split()[-1] for problem in caught.value.problems] == ["3", "5"]
    assert "has 2 fields, must have 3" in str(caught.value)
    assert "has 4 fields, must have 3" in str(caught.value)


def test_many_broken_lines_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        _load(tmp_path, INTER + "a\tu\n" * 40)
    assert len(caught.value.problems) == 6
    assert "35 more" in _messages(caught)[-1]


@pytest.mark.parametrize(
    ("inter", "message"),
    [
        ("user_id\titem_id:token\ttimestamp:float\n", "holds no rows"),
        ("user_id:text\titem_id:token\ttimestamp:float\n", "'user_id:text': must be field:type with a type of"),
        (
            "user_id:token\titem_id:token\n",
            "no column that is known as time → .*dataset.order=file.* the columns are user_id, item_id",
        ),
        ("user_id:token\titem_id:token\ttimestamp:float\titem_id:token\n", "'item_id': stands in the header twice"),
        ("", "is empty"),
    ],
)
def test_broken_headers(inter: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ProblemsFound, match=message):
        _load(tmp_path, inter)


def test_an_item_listed_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.item line 4 = 'a': item_id is listed twice, with other words in line 2"):
        _load(tmp_path, INTER + "a\tu\t1\n", ITEM + "a\tHeat\t1\nb\tHit\t1\na\tHut\t1\n")


def test_other_encodings_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "x.inter").write_bytes(INTER.encode() + b"a\tu\t1\na\tu\xe9\t2\n")
    settings = DatasetSettings(adapter="recbole", root=tmp_path, name="x")
    with pytest.raises(DataError, match=r"x\.inter line 3 .* is not utf-8 text"):
        recbole.load(settings)
    with pytest.raises(DataError, match=r"y\.inter' is missing|y\.inter'?: is missing") as caught:
        recbole.load(replace(settings, name="y"))
    assert "the folder holds x.inter" in str(caught.value)


def test_items_that_nobody_met_leave_the_catalogue(tmp_path: Path) -> None:
    settings = write_recbole(tmp_path)
    before = load_dataset(settings)
    with (tmp_path / "toy.item").open("a") as handle:
        handle.write("999\tNobody's Film\t2000\n")
    after = load_dataset(settings)
    assert "999" not in after.id_map.raw_ids
    assert after.id_map == before.id_map
