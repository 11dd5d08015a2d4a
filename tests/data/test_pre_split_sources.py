"""DLLM2Rec's and LLaRA's folders: quirks of the published files, and what a user is told about a wrong one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from src.core.errors import DataError
from src.data.adapters import ADAPTERS
from src.data.dataset import load_dataset
from src.data.pre_split import PreSplit
from src.data.settings import DatasetSettings
from tests.data.toy_sources import ITEMS, write_dllm2rec, write_llara_movies, write_llara_names


def _load(settings: DatasetSettings) -> PreSplit:
    source = ADAPTERS[settings.adapter].load(settings)
    assert isinstance(source, PreSplit)
    return source


def _replace_line(path: Path, number: int, text: str) -> None:
    lines = path.read_text().split("\n")
    lines[number - 1] = text
    path.write_text("\n".join(lines))


def test_an_empty_history_written_as_length_one_has_length_zero(tmp_path: Path) -> None:
    source = _load(write_dllm2rec(tmp_path))
    assert source.tables["train"].length[:14].tolist() == [0] * 12 + [1] * 2
    kept = source.examples("train", 10, 0)
    assert kept.history[0].tolist() == [ITEMS] * 10
    assert len(source.examples("train", 10, 3)) == 80 - 36


def test_ids_in_every_notation(tmp_path: Path) -> None:
    settings = write_dllm2rec(tmp_path)
    path = tmp_path / "data" / "toy" / "val_data.csv"
    padding = ", 24" * 7
    path.write_text(
        f'next,seq,len_seq\n"(3, 5)","[(1, 4), (2.0, 3), (5, 1)]",3\n7.0,"[1.0, 2.0, 5{padding}]",3.0\n'
        f"8,\"['1', '2.0', '5']\",3\n"
    )
    examples = _load(settings).examples("validation", 4, 3)
    assert examples.history.tolist() == [[1, 2, 5, 24]] * 3
    assert examples.target.tolist() == [3, 7, 8]


def test_broken_rows_are_reported_together_with_their_lines(tmp_path: Path) -> None:
    settings = write_dllm2rec(tmp_path)
    path = tmp_path / "data" / "toy" / "train_data.csv"
    _replace_line(path, 3, '"[1, x]",2,4')
    _replace_line(path, 5, '"[1, 2]",2.5,4')
    _replace_line(path, 6, '"[1, 2]",2,')
    _replace_line(path, 7, '"[1, 2]",3,4')
    _replace_line(path, 8, "7,1,4")
    with pytest.raises(DataError) as caught:
        load_dataset(settings)
    assert [str(problem) for problem in caught.value.problems] == [
        f"{path} line 3 seq = '[1, x]': must be a list of item ids",
        f"{path} line 8 seq = '7': must be a list of item ids",
        f"{path} line 5 len_seq = '2.5': must be a whole number",
        f"{path} line 6 next = '': must be an item id",
        f"{path} line 7 len_seq = 3: is outside 0..2, the length of seq",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('"[1, 2, 3]",3,24', "line 4 = 24: next is outside 0..23"),
        ('"[1, 2, 3]",3,-1', "line 4 = -1: next is outside 0..23"),
        ('"[1, 99, 3]",3,4', "line 4 = 99: seq is outside 0..23"),
        ('"[1, 24, 3]",3,4', "line 4 = 24: seq is outside 0..23"),
        ('"[1, 2, 3, 0]",3,4', "= 0: padding must be 24, the number of items"),
    ],
)
def test_ids_that_slipped(row: str, message: str, tmp_path: Path) -> None:
    settings = write_dllm2rec(tmp_path)
    _replace_line(tmp_path / "data" / "toy" / "test_data.csv", 4, row)
    with pytest.raises(DataError, match=message):
        load_dataset(settings)


def test_missing_columns_fields_and_files(tmp_path: Path) -> None:
    settings = write_dllm2rec(tmp_path)
    home = tmp_path / "data" / "toy"
    _replace_line(home / "val_data.csv", 2, "1,2")
    with pytest.raises(DataError, match=r"val_data\.csv line 2 = '1,2': has 2 fields, must have 3"):
        load_dataset(settings)
    (home / "val_data.csv").write_text("seq,next\n[1],2\n")
    with pytest.raises(DataError, match=r"\['len_seq'\]: are missing"):
        load_dataset(settings)
    (home / "val_data.csv").unlink()
    with pytest.raises(DataError, match=r"is missing → put val_data\.df or val_data\.csv into"):
        load_dataset(settings)
    with pytest.raises(DataError, match=r"must hold data/<dataset\.name>/"):
        load_dataset(replace(settings, name="other"))


@pytest.mark.parametrize("content", ["item_num\n", "item_num\nmany\n", "item_num\n2.5\n", "items\n24\n"])
def test_the_size_of_the_catalogue_must_be_a_number(content: str, tmp_path: Path) -> None:
    settings = write_dllm2rec(tmp_path)
    (tmp_path / "data" / "toy" / "data_statis.csv").write_text(content)
    with pytest.raises(DataError, match="item_num .* one whole number"):
        load_dataset(settings)


def test_titles_for_dllm2rec(tmp_path: Path) -> None:
    settings = write_dllm2rec(tmp_path)
    (tmp_path / "titles.json").write_text(json.dumps({"3": "Three", "0": "Zero"}))
    assert _load(settings).id_map.titles[:4] == ("Zero", "", "", "Three")
    (tmp_path / "t.csv").write_text('id,title\n1,"One, two"\n')
    assert _load(replace(settings, titles_file="t.csv")).id_map.titles[:3] == ("", "One, two", "")
    assert _load(replace(settings, titles_file=None)).id_map.untitled == ITEMS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.json", '["one"]', "= 1: must list 24 titles"),
        ("t.json", '{"24": "x"}', "'24': is outside the catalogue 0..23"),
        ("t.json", '{"-1": "x"}', "'-1': is outside the catalogue 0..23"),
        ("t.json", "{\n]", "line 2 .*must be JSON"),
        ("t.json", "3", "must be a list of titles or an object"),
        ("t.csv", "id,title\n1,a,b\n", "line 2 .*must be id,title"),
    ],
)
def test_broken_titles(name: str, content: str, message: str, tmp_path: Path) -> None:
    settings = replace(write_dllm2rec(tmp_path), titles_file=name)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_dataset(settings)


def test_names_with_the_separator_inside(tmp_path: Path) -> None:
    settings = write_llara_names(tmp_path)
    path = tmp_path / "id2name.txt"
    path.write_text(path.read_text().replace("Film 3\n", " Twin :: Peakless \n"))
    assert _load(settings).id_map.titles[3] == "Twin :: Peakless"
    assert _load(replace(settings, title_handling="as_released")).id_map.titles[3] == "Twin"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0::Film 0", "0 Film 0", "id2name.txt line 1 = '0 Film 0': must be id::name"),
        ("5::Film 5", "5 Film 5", "= 5: item ids must be 0..V-1 without a gap.* lines 6 have no id::"),
        ("5::Film 5", "4::Film 5", "id2name.txt line 6 = '4': is listed twice, with another name in line 5: 'Film 4'"),
        ("5::Film 5\n", "", "= 5: item ids must be 0..V-1 without a gap"),
        ("23::Film 23\n", "", "outside 0..22"),
    ],
)
def test_broken_names(old: str, new: str, message: str, tmp_path: Path) -> None:
    settings = write_llara_names(tmp_path)
    path = tmp_path / "id2name.txt"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        load_dataset(settings)


def test_movie_ids_count_from_one(tmp_path: Path) -> None:
    settings = write_llara_movies(tmp_path)
    path = tmp_path / "u.item"
    path.write_bytes(path.read_bytes().replace(b"24|Film", b"0|Film"))
    with pytest.raises(DataError, match=r"u\.item line 24 .*ids from 1"):
        load_dataset(settings)


def test_which_titles_are_meant_must_be_clear(tmp_path: Path) -> None:
    settings = write_llara_movies(tmp_path)
    (tmp_path / "id2name.txt").write_text("0::x\n")
    with pytest.raises(DataError, match=r"holds both id2name\.txt and u\.item"):
        load_dataset(settings)
    (tmp_path / "id2name.txt").unlink()
    (tmp_path / "u.item").unlink()
    with pytest.raises(DataError, match=r"put id2name\.txt or u\.item into"):
        load_dataset(settings)
