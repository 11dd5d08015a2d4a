"""Files as people have them: each situation that was once read wrongly, or refused without a good reason."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from src.core.errors import ConfigError, DataError
from src.data.adapters import find_adapter
from src.data.dataset import load_dataset
from src.data.interactions import Interactions
from src.data.pre_split import PreSplit
from src.data.settings import ColumnSettings, DatasetSettings
from tests.data.toy_sources import (
    ITEMS,
    toy_log,
    toy_sequences,
    write_dllm2rec,
    write_llara_movies,
    write_llara_names,
    write_movielens_100k,
    write_recbole,
)


def log_of(settings: DatasetSettings) -> Interactions:
    source = find_adapter(settings.adapter).load(settings)
    assert isinstance(source, Interactions)
    return source


def split_of(settings: DatasetSettings) -> PreSplit:
    source = find_adapter(settings.adapter).load(settings)
    assert isinstance(source, PreSplit)
    return source


def items(folder: Path, *changed: str) -> None:
    """toy.item with other lines in place of the first ones."""
    path = folder / "toy.item"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[1 : 1 + len(changed)] = changed
    path.write_bytes(("\n".join(lines) + "\n").encode())


# -- encodings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1"])
def test_movielens_titles_saved_in_either_encoding(encoding: str, tmp_path: Path) -> None:
    settings = write_movielens_100k(tmp_path)
    text = (tmp_path / "u.item").read_text(encoding="iso-8859-1").replace("Film 5, The", "Misérables, Les")
    (tmp_path / "u.item").write_text(text, encoding=encoding)
    assert log_of(settings).id_map.titles[4] == "Misérables, Les"
    llara = write_llara_movies(tmp_path)
    (tmp_path / "u.item").write_text(text, encoding=encoding)
    assert split_of(llara).id_map.titles[4] == "Misérables, Les"


def test_an_item_file_in_another_encoding(tmp_path: Path) -> None:
    settings = write_recbole(tmp_path)
    text = (tmp_path / "toy.item").read_text().replace("Film 5,", "Café,")
    (tmp_path / "toy.item").write_text(text, encoding="iso-8859-1")
    with pytest.raises(
        DataError, match=r"toy.item line 6 .* is not utf-8 text → .*dataset.encoding=iso-8859-1 .*iconv -f"
    ):
        log_of(settings)
    assert log_of(replace(settings, encoding="iso-8859-1")).id_map.titles[4] == "The Café"


# -- titles ----------------------------------------------------------------------------------------------------------


def test_null_titles_are_missing_titles(tmp_path: Path) -> None:
    settings = write_dllm2rec(tmp_path)
    titles: dict[str, object] = {str(item): f"Film {item}" for item in range(ITEMS)}
    titles |= {"0": None, "3": "nan", "4": "NULL", "5": "  "}
    (tmp_path / "titles.json").write_text(json.dumps(titles))
    assert split_of(settings).id_map.titles[:7] == ("", "Film 1", "Film 2", "", "", "", "Film 6")
    (tmp_path / "titles.json").write_text(json.dumps([titles[str(item)] for item in range(ITEMS)]))
    assert split_of(settings).id_map.untitled == 4
    with pytest.raises(DataError, match=r"4 of 24 have none \(raw ids 0, 3, 4, 5\)"):
        load_dataset(replace(settings, untitled="refuse"))
    assert split_of(replace(settings, untitled="id")).id_map.titles[3] == "3"


@pytest.mark.parametrize("title", ["\u200b", "\ufeff", "\u3164", "\u00a0", "nan", "None", "<NA>", "", " "])
def test_titles_that_show_nothing_are_missing(title: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = write_recbole(tmp_path)
    items(tmp_path, f"1\t{title}\t1961", "2\t???\t1962")
    with caplog.at_level(logging.INFO):
        log = log_of(settings)
    assert log.id_map.titles[:3] == ("", "???", "The Film 3")
    assert ("1 titles show nothing" in caplog.text) == bool(title)
    assert load_dataset(replace(settings, untitled="drop")).id_map.raw_ids[0] == "2"
    with pytest.raises(DataError, match=r"item titles = '1 of 24 have none \(raw ids 1\)'"):
        load_dataset(replace(settings, untitled="refuse"))


def test_html_in_titles_is_resolved_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = write_recbole(tmp_path)
    items(
        tmp_path,
        "1\tCollector&#39;s Edition &amp; <b>Guide</b>, The\t1",
        "2\tAT&T <3\t2",
        "3\t&quot;A&quot; &lt;i&gt;B&lt;/i&gt;\t3",
    )
    with caplog.at_level(logging.INFO):
        log = log_of(settings)
    assert log.id_map.titles[:3] == ("The Collector's Edition & Guide", "AT&T <3", '"A" B')
    assert "toy.item: 2 titles held HTML or line breaks and are written as people write them" in caplog.text


def test_quoted_titles_are_read_by_the_rules_of_csv(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = write_recbole(tmp_path)
    caplog.set_level(logging.INFO)
    items(
        tmp_path,
        '1\t"2-Pack\nof ""Blue"" Film"\t1',
        '2\t"A\tB"\t2',
        '3\t"Heroes" live\t3',
        '4\t12" Vinyl\t4',
        '5\t"Open\t5',
    )
    titles = log_of(settings).id_map.titles
    assert "2 titles held HTML or line breaks" in caplog.text
    assert titles[:5] == ('2-Pack of "Blue" Film', "A B", '"Heroes" live', '12" Vinyl', '"Open')


def test_a_name_that_goes_on_in_the_next_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = write_llara_names(tmp_path)
    path = tmp_path / "id2name.txt"
    path.write_text(path.read_text().replace("Film 5\n", "Part one\nPart two\n"))
    assert split_of(settings).id_map.titles[4:7] == ("Film 4", "Part one Part two", "Film 6")
    assert "1 lines without id:: go on with the name before them (lines 7)" in caplog.text


def test_a_year_that_the_item_file_does_not_have(tmp_path: Path) -> None:
    settings = write_recbole(tmp_path)
    (tmp_path / "toy.item").write_text("item_id:token\ttitle:token_seq\n1\tA\n")
    with pytest.raises(
        ConfigError, match=r"dataset.title_year = True: .*toy.item has no release_year → .*item_id, title"
    ):
        load_dataset(replace(settings, title_year=True))
    (tmp_path / "toy.item").unlink()
    with pytest.raises(ConfigError, match=r"dataset.title_year = True: toy.item is missing"):
        load_dataset(replace(settings, title_year=True))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("movies.dat", "{0}::Film &amp; {0}, The (1995)::Drama"),
        ("movies.dat", "{0}::The Film &amp; {0} (1995)::Drama|Comedy"),
        ("id2name.txt", "{0}::The Film & {0}"),
        ("id2name.txt", " The Film &amp; {0}\t{0}"),
        ("names.tsv", "{0}\tThe Film &amp; {0}"),
        ("names.txt", "{0}.0::The Film &amp; {0}"),
    ],
)
def test_title_files_of_bigrec_movielens_and_llara(name: str, line: str, tmp_path: Path) -> None:
    settings = replace(write_dllm2rec(tmp_path), titles_file=name)
    (tmp_path / name).write_text("\n".join(line.format(item) for item in range(ITEMS)))
    assert split_of(settings).id_map.titles == tuple(f"The Film & {item}" for item in range(ITEMS))


def test_a_csv_of_titles_with_more_columns(tmp_path: Path) -> None:
    settings = replace(write_dllm2rec(tmp_path), titles_file="movies.csv")
    lines = [f'{item},"Film, {item}",Drama' for item in range(ITEMS)]
    (tmp_path / "movies.csv").write_text("\n".join(["movieId,title,genres", *lines]))
    assert split_of(settings).id_map.titles == tuple(f"Film, {item}" for item in range(ITEMS))


# -- items ------------------------------------------------------------------------------------------------------------


def test_items_that_only_the_log_lists_have_no_title(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = write_recbole(tmp_path)
    lines = (tmp_path / "toy.item").read_text().splitlines()
    (tmp_path / "toy.item").write_text("\n".join([lines[0], *lines[4:]]) + "\n")
    rows = sum(item in (1, 2, 3) for _, item, _, _ in toy_log())
    log = log_of(settings)
    assert "does not list 3 items of the log (" in caplog.text
    assert f"{rows} rows" in caplog.text
    assert log.id_map.raw_ids[:2] == ("4", "5")
    assert set(log.id_map.raw_ids[-3:]) == {"1", "2", "3"}
    assert log.id_map.titles[-3:] == ("", "", "")
    dropped = load_dataset(replace(settings, untitled="drop"))
    assert dropped.num_items == ITEMS - 3
    assert dropped.statistics.interactions == len(toy_log()) - rows


def test_lines_that_stand_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = write_recbole(tmp_path)
    before = load_dataset(settings).fingerprints()
    with (tmp_path / "toy.item").open("a") as handle:
        handle.write("7\tFilm 7, The\t1967\n")
    assert load_dataset(settings).fingerprints() == before
    assert "1 lines repeat another one and count once" in caplog.text
    with (tmp_path / "toy.item").open("a") as handle:
        handle.write("7\tFilm 77\t1967\n")
    with pytest.raises(DataError, match=r"toy.item line 27 = '7': item_id is listed twice, with other words in line 8"):
        load_dataset(settings)


def test_names_that_stand_twice(tmp_path: Path) -> None:
    settings = write_llara_names(tmp_path)
    before = load_dataset(settings).fingerprints()
    path = tmp_path / "id2name.txt"
    path.write_text(path.read_text() + "7::Film 7\n")
    assert load_dataset(settings).fingerprints() == before
    path.write_text(path.read_text() + "7::Lost\n")
    with pytest.raises(DataError, match=r"line 26 = '7': is listed twice, with another name in line 8: 'Film 7'"):
        load_dataset(settings)


def test_ids_that_one_file_writes_as_fractions(tmp_path: Path) -> None:
    settings = write_recbole(tmp_path)
    before = load_dataset(settings).fingerprints()
    lines = (tmp_path / "toy.inter").read_text().splitlines()
    fractions = [f"{u}.0\t{i}.0\t{r}\t{t}" for u, i, r, t in toy_log()]
    (tmp_path / "toy.inter").write_text("\n".join([lines[0], *fractions]) + "\n")
    assert load_dataset(settings).fingerprints() == before


# -- logs -------------------------------------------------------------------------------------------------------------


def rewrite(folder: Path, header: str, row: str, name: str = "toy.inter") -> None:
    """The log with another header and another form of its rows."""
    lines = [row.format(u=u, i=i, r=r, t=t, n=n) for n, (u, i, r, t) in enumerate(toy_log())]
    (folder / name).write_text("\n".join([*([header] if header else []), *lines]) + "\n")


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("user_id\titem_id\trating\ttimestamp", "{u}\t{i}\t{r}\t{t}"),
        ("user_id:token,item_id:token,rating:float,timestamp:float", "{u},{i},{r},{t}"),
        ("user_id,item_id,rating,timestamp", "{u},{i},{r},{t}"),
        ("review_id:token\tuser_id:token\titem_id:token\tstars:float\tdate:float", "rv{n}\t{u}\t{i}\t{r}\t{t}"),
        ("user_id:token\tbusiness_id:token\tstars:float\tdate:float\tuseful:float", "{u}\t{i}\t{r}\t{t}\t"),
        ("user_id:token\titem_id:token\trating:float\ttimestamp:float", "{u}\t{i}.0\t{r}\t{t}.0"),
    ],
)
def test_headers_as_they_are_in_the_wild(header: str, row: str, tmp_path: Path) -> None:
    settings = write_recbole(tmp_path)
    before = load_dataset(settings).fingerprints()
    rewrite(tmp_path, header, row)
    assert load_dataset(settings).fingerprints() == before


def test_an_item_file_with_the_logs_own_name_of_the_id(tmp_path: Path) -> None:
    settings = write_recbole(tmp_path)
    before = load_dataset(settings).fingerprints()
    rewrite(tmp_path, "user_id:token\tbusiness_id:token\tstars:float\tdate:float", "{u}\t{i}\t{r}\t{t}")
    lines = (tmp_path / "toy.item").read_text().splitlines()
    (tmp_path / "toy.item").write_text("\n".join(["business_id:token\titem_name:token_seq\tx:float", *lines[1:]]))
    assert load_dataset(settings).fingerprints() == before


def test_fields_that_the_user_names(tmp_path: Path) -> None:
    settings = write_recbole(tmp_path)
    before = load_dataset(settings).fingerprints()
    rewrite(tmp_path, "who:token\twhat:token\thow:float\twhen:float", "{u}\t{i}\t{r}\t{t}")
    with pytest.raises(ConfigError, match=r"dataset.columns.user = None: .*the columns are who, what, how, when"):
        load_dataset(settings)
    named = ColumnSettings(user="who", item="what", rating="how", time="when")
    assert load_dataset(replace(settings, columns=named)).fingerprints() == before


@pytest.mark.parametrize(
    "row",
    [
        "{u}\t{i}\t{r}\t1970-01-01 00:{m:02d}:{s:02d}",
        "{u}\t{i}\t{r}\tThu Jan 01 00:{m:02d}:{s:02d} +0000 1970",
        "{u}\t{i}\t{r}\t01/01/1970 00:{m:02d}:{s:02d}",
    ],
)
def test_dates_are_a_clock(row: str, tmp_path: Path) -> None:
    settings = write_recbole(tmp_path)
    before = load_dataset(settings).fingerprints()
    lines = [row.format(u=u, i=i, r=r, m=t // 60, s=t % 60) for u, i, r, t in toy_log()]
    if "/" in row:
        settings = replace(settings, time_format="%d/%m/%Y %H:%M:%S")
    (tmp_path / "toy.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "\n".join(lines)
    )
    assert load_dataset(settings).fingerprints() == before


def test_ratings_that_nobody_reads(tmp_path: Path) -> None:
    settings = write_recbole(tmp_path)
    before = load_dataset(settings)
    path = tmp_path / "toy.inter"
    lines = path.read_text().splitlines()
    lines[5] = "\t".join([*lines[5].split("\t")[:2], "", lines[5].split("\t")[3]])
    path.write_text("\n".join(lines) + "\n")
    assert load_dataset(settings).split_fingerprint == before.split_fingerprint
    with pytest.raises(
        DataError, match=r"toy.inter line 6 = '': rating must be a finite number, for dataset.min_rating"
    ):
        load_dataset(replace(settings, min_rating=2.0))


def test_a_log_without_a_clock_in_file_order(tmp_path: Path) -> None:
    settings = write_recbole(tmp_path)
    rewrite(tmp_path, "user_id:token\titem_id:token\trating:float", "{u}\t{i}\t{r}")
    with pytest.raises(
        ConfigError, match=r"dataset.order=file dataset.split=leave_one_out; the columns are user_id, item"
    ):
        load_dataset(settings)
    data = load_dataset(replace(settings, order="file", split="leave_one_out"))
    assert data.statistics.test == 12


@pytest.mark.parametrize(
    ("header", "row", "name", "options"),
    [
        ("", "{u} {i}", "toy.txt", {"order": "file", "split": "leave_one_out"}),
        ("user_id,parent_asin,rating,timestamp", "{u},{i},{r}.0,{t}", "toy.csv", {}),
    ],
)
def test_a_table_in_place_of_the_atomic_file(
    header: str, row: str, name: str, options: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(write_recbole(tmp_path), **options)  # type: ignore[arg-type]
    before = load_dataset(settings)
    (tmp_path / "toy.inter").unlink()
    (tmp_path / "toy.item").unlink()
    rewrite(tmp_path, header, row, name)
    meta = [json.dumps({"parent_asin": str(i), "title": f"The Film {i}"}) for i in range(1, ITEMS + 1)]
    (tmp_path / "meta_toy.jsonl").write_text("\n".join(meta))
    data = load_dataset(settings)
    assert f"toy.inter is missing; {name} is read as dataset=table does" in caplog.text
    assert data.split_fingerprint == before.split_fingerprint
    assert data.id_map == before.id_map


# -- RecBole's benchmark split ----------------------------------------------------------------------------------------


def benchmark(folder: Path, lists: bool) -> DatasetSettings:
    """The toy log split 80, 14, 14, as histories or as interactions."""
    settings = write_recbole(folder)
    (folder / "toy.inter").unlink()
    header = "user_id:token\t" + ("item_id_list:token_seq\t" if lists else "timestamp:float\t") + "item_id:token"
    rows = []
    for (user, item, _, time), (history, _) in zip(toy_log(), toy_sequences(), strict=True):
        middle = " ".join(str(past + 1) for past in history) if lists else time
        rows.append(f"{user}\t{middle}\t{item}")
    for part, lines in (("train", rows[:80]), ("valid", rows[80:94]), ("test", rows[94:])):
        (folder / f"toy.{part}.inter").write_text("\n".join([header, *lines]) + "\n")
    return settings


@pytest.mark.parametrize("lists", [True, False])
def test_a_benchmark_split_is_read_as_it_is_split(lists: bool, tmp_path: Path) -> None:
    settings = benchmark(tmp_path, lists)
    source = split_of(settings)
    sizes = {split: len(table) for split, table in source.tables.items()}
    assert sizes == {"train": 80, "validation": 14, "test": 14}
    data = load_dataset(settings)
    expected = [row for row, (history, _) in enumerate(toy_sequences()) if len(history) >= 3]
    assert data.train.example_id.tolist() == [row for row in expected if row < 80]
    for place, row in enumerate(data.train.example_id):
        history, target = toy_sequences()[row]
        assert data.train.history[place, : data.train.length[place]].tolist() == history[-10:]
        assert data.train.target[place] == target
    assert data.id_map.titles[0] == "The Film 1"
    with pytest.raises(ConfigError, match=r"dataset.train_share = 0.5: is not read by dataset.adapter = recbole"):
        load_dataset(replace(settings, train_share=0.5))


def test_a_benchmark_split_of_two_forms(tmp_path: Path) -> None:
    settings = benchmark(tmp_path, lists=True)
    (tmp_path / "toy.test.inter").write_text("user_id:token\titem_id:token\n1\t2\n")
    with pytest.raises(DataError, match=r"toy.test.inter.*has no item_id_list, which the other files have"):
        load_dataset(settings)


# -- DLLM2Rec's and LLaRA's tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('"[1, NaN]",2,4', "line 4 seq = .*must be a list of item ids"),
        ('"[1, 1e30]",2,4', "line 4 seq = .*must be a list of item ids"),
        ('"[1, 2]",1e30,4', "line 4 len_seq = '1e30': must be a whole number"),
        ('"[1, 2]",2,nan', "line 4 next = 'nan': must be an item id"),
        ('"[1, 2]",2,1e30', "line 4 next = '1e30': must be an item id"),
        ('"[1, 2]",2,inf', "line 4 next = 'inf': must be an item id"),
        ('"' + "[" * 5000 + '",2,4', "line 4 seq = .*must be a list of item ids"),
    ],
)
def test_numbers_that_are_no_ids(row: str, message: str, tmp_path: Path) -> None:
    settings = write_dllm2rec(tmp_path)
    path = tmp_path / "data" / "toy" / "train_data.csv"
    lines = path.read_text().splitlines()
    lines[3] = row
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        load_dataset(settings)


def test_a_history_longer_than_csv_allows_a_field(tmp_path: Path) -> None:
    settings = write_dllm2rec(tmp_path)
    before = load_dataset(settings)
    path = tmp_path / "data" / "toy" / "train_data.csv"
    lines = path.read_text().splitlines()
    padded = lines[60].replace("]", ", 24" * 40_000 + "]")
    assert len(padded) > 131_072
    path.write_text("\n".join([*lines[:60], padded, *lines[61:]]))
    assert load_dataset(settings).split_fingerprint == before.split_fingerprint


@pytest.mark.parametrize("number", ["1e30", "nan", "inf", "0", "-3"])
def test_a_size_that_no_catalogue_has(number: str, tmp_path: Path) -> None:
    settings = write_dllm2rec(tmp_path)
    (tmp_path / "data" / "toy" / "data_statis.csv").write_text(f"seq_size,item_num\n10,{number}\n")
    with pytest.raises(DataError, match="item_num .* one whole number"):
        load_dataset(settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"0": {"name": "x"}}', "entry 0 = .*must be a title, text or null"),
        ("[" * 100_000, "must be JSON|must be a list of titles"),
        ("0::A\n0::B\n", r"line 2 = '0': has another title already, 'A'"),
        ("99::A\n", r"line 1 = '99': is outside the catalogue 0..23"),
        ("just text\n", "known are a JSON list, .*id::name, and name TAB id"),
    ],
)
def test_title_files_that_are_wrong(content: str, message: str, tmp_path: Path) -> None:
    settings = replace(write_dllm2rec(tmp_path), titles_file="t.txt")
    (tmp_path / "t.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        load_dataset(settings)
