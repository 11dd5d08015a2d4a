"""`dataset=table`: any file that holds a log, and what a user is told about one that does not."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from src.core.errors import ConfigError, DataError, ProblemsFound
from src.data import text_file
from src.data.adapters import table
from src.data.dataset import load_dataset, split_source
from src.data.interactions import Interactions
from src.data.settings import ColumnSettings, DatasetSettings
from src.data.tables import from_memory
from tests.data.toy_sources import toy_log, write_table

FRAME = pd.DataFrame(toy_log(), columns=["user_id", "item_id", "rating", "timestamp"])


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as handle:
        handle.write(content)
    compressed: bytes = sink.getvalue().to_pybytes()
    return compressed


def settings_for(root: Path, **options: object) -> DatasetSettings:
    return DatasetSettings(adapter="table", root=root, name="log", **options)  # type: ignore[arg-type]


def same(log: Interactions, expected: Interactions) -> None:
    assert (log.users == expected.users).all()
    assert [log.id_map.raw_ids[item] for item in log.items] == [expected.id_map.raw_ids[i] for i in expected.items]
    assert log.timestamps.tolist() == expected.timestamps.tolist()
    assert log.ratings is not None
    assert expected.ratings is not None
    assert log.ratings.tolist() == expected.ratings.tolist()


EXPECTED = table.from_tables(from_memory("log", FRAME), None, settings_for(Path("/nowhere")))


def parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pa.Table.from_pandas(FRAME), path)


def feather(path: Path) -> None:
    pyarrow.feather.write_feather(pa.Table.from_pandas(FRAME), path)


def in_bytes(content: str, pack: Callable[[bytes], bytes] = bytes) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(pack(content.encode())), None)[1]


CSV, TSV = FRAME.to_csv(index=False), FRAME.to_csv(index=False, sep="\t")
LINES = FRAME.to_json(orient="records", lines=True)
WRITERS: dict[str, Callable[[Path], None]] = {
    "log.csv": in_bytes(CSV),
    "semicolon.csv": in_bytes(CSV.replace(",", ";")),
    "windows.csv": in_bytes("\ufeff" + CSV.replace("\n", "\r\n")),
    "excel.csv": lambda path: (path.write_bytes(CSV.encode("utf-16")), None)[1],
    "log.tsv": in_bytes(TSV),
    "log.dat": in_bytes(FRAME.to_csv(index=False, sep="|")),
    "log.jsonl": in_bytes(LINES),
    "log.json": in_bytes(json.dumps(FRAME.to_dict("records"))),
    "python.json": in_bytes("\n".join(str(row) for row in json.loads(json.dumps(FRAME.to_dict("records"))))),
    "log.parquet": parquet,
    "log.feather": feather,
    "log.csv.gz": in_bytes(CSV, gzip.compress),
    "log.tsv.bz2": in_bytes(TSV, bz2.compress),
    "log.csv.xz": in_bytes(CSV, lzma.compress),
    "log.csv.zst": in_bytes(CSV, zstd),
    "log.jsonl.gz": in_bytes(LINES, gzip.compress),
    "log.jsonl.zst": in_bytes(LINES, zstd),
    "misnamed.csv": in_bytes(CSV, gzip.compress),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_log(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    same(table.load(settings_for(tmp_path / name)), EXPECTED)
    same(table.load(settings_for(tmp_path)), EXPECTED)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_folder_of_files_is_one_log(ending: str, tmp_path: Path) -> None:
    (tmp_path / "parts" / "b").mkdir(parents=True)
    halves = {"parts/a": FRAME.iloc[:60], "parts/b/part-0001": FRAME.iloc[60:]}
    for name, half in halves.items():
        if ending == "csv":
            half.to_csv(tmp_path / f"{name}.csv", index=False)
        else:
            half.to_parquet(tmp_path / f"{name}.parquet")
    same(table.load(settings_for(tmp_path, interactions_file="parts")), EXPECTED)


def test_files_of_a_folder_must_have_the_same_columns(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    FRAME.to_csv(tmp_path / "log" / "a.csv", index=False)
    FRAME.rename(columns={"rating": "stars"}).to_csv(tmp_path / "log" / "b.csv", index=False)
    with pytest.raises(DataError, match=r"b\.csv = .*must have the columns of a\.csv"):
        table.load(settings_for(tmp_path, interactions_file="log"))


@pytest.mark.parametrize(
    "frame",
    [
        FRAME.astype({"user_id": "category", "item_id": str}),
        FRAME.astype({"user_id": float, "item_id": object}),
        FRAME.assign(timestamp=pd.to_datetime(FRAME["timestamp"], unit="s")),
        FRAME.assign(timestamp=pd.to_datetime(FRAME["timestamp"], unit="s", utc=True).dt.tz_convert("Asia/Tokyo")),
        FRAME.assign(item_id=[str(i) if n % 2 else float(i) for n, i in enumerate(FRAME["item_id"])]),
        FRAME.set_index(pd.Index(range(500, 500 + len(FRAME)))),
        pa.Table.from_pandas(FRAME),
    ],
)
def test_tables_in_memory_with_columns_of_any_type(frame: object) -> None:
    same(table.from_tables(from_memory("log", frame), None, settings_for(Path("/nowhere"))), EXPECTED)


def test_ids_beyond_every_column_type() -> None:
    ids = {user: uuid.UUID(int=user) for user in range(20)}
    same(from_frame(FRAME.assign(user_id=FRAME["user_id"].map(ids))), EXPECTED)
    same(from_frame(FRAME.assign(user_id=FRAME["user_id"].astype(object) * 10**30)), EXPECTED)
    same(from_frame(FRAME.assign(user_id=[[user] for user in FRAME["user_id"]])), EXPECTED)
    with pytest.raises(DataError, match="log columns = 'user_id': stands there twice"):
        from_frame(pd.concat([FRAME, FRAME[["user_id"]]], axis=1))


def from_frame(frame: pd.DataFrame) -> Interactions:
    return table.from_tables(from_memory("log", frame), None, settings_for(Path("/nowhere")))


@pytest.mark.parametrize("wrong", [3, None, "text", [1, 2]])
def test_what_is_no_table(wrong: object) -> None:
    with pytest.raises(DataError, match="log = .*cannot be read as a table.*pass a pandas, polars or pyarrow table"):
        table.from_tables(from_memory("log", wrong), None, settings_for(Path("/nowhere")))


def test_from_a_data_frame_to_a_split(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    FRAME.to_csv(tmp_path / "log.csv", index=False)
    from_file = load_dataset(settings)
    from_frame = split_source(table.from_tables(from_memory("log", FRAME), None, settings), settings)
    assert from_file.fingerprints() == from_frame.fingerprints()


def test_columns_are_guessed_from_common_names_and_printed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log = table.load(write_table(tmp_path))
    assert "user = customer, item = sku, time = purchased_at, rating = stars" in caplog.text
    assert "the log is log.csv, the items' file items.jsonl" in caplog.text
    assert "times in purchased_at are read as ISO dates" in caplog.text
    assert log.id_map.titles[:2] == ("The Film 1", "The Film 2")
    assert log.timestamps[0] == 1001.0


def test_columns_by_key_by_place_and_by_header(tmp_path: Path) -> None:
    odd = FRAME.rename(columns={"user_id": "who", "item_id": "what", "rating": "how", "timestamp": "when"})
    odd.to_csv(tmp_path / "log.csv", index=False)
    named = ColumnSettings(user="who", item="what", time="when", rating="how")
    same(table.load(settings_for(tmp_path, columns=named)), EXPECTED)
    same(table.load(settings_for(tmp_path / "log.csv", columns=replace(named, user="1", item="2"))), EXPECTED)
    FRAME.to_csv(tmp_path / "log.csv", index=False, header=False)
    same(table.load(settings_for(tmp_path)), EXPECTED)  # user, item, rating, time: the order of four columns
    FRAME[["item_id", "user_id", "rating", "timestamp"]].to_csv(tmp_path / "log.csv", index=False, header=False)
    header = ("item_id", "user_id", "rating", "timestamp")
    same(table.load(settings_for(tmp_path, header=header)), EXPECTED)


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "log.csv", index=False)
    wrong = ColumnSettings(user="customer", time="when")
    with pytest.raises(ConfigError) as caught:
        table.load(settings_for(tmp_path / "log.csv", columns=wrong))
    assert [str(problem) for problem in caught.value.problems] == [
        f"dataset.columns.user = 'customer': is no column of {tmp_path}/log.csv → "
        "the columns are user_id, item_id, rating, timestamp",
        f"dataset.columns.time = 'when': is no column of {tmp_path}/log.csv → "
        "the columns are user_id, item_id, rating, timestamp",
    ]


def test_one_column_for_two_roles(tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "log.csv", index=False)
    same_column = ColumnSettings(user="item_id")
    with pytest.raises(ConfigError, match=r"columns.item = \['item_id'\]|known as item|users as well"):
        table.load(settings_for(tmp_path / "log.csv", columns=same_column))
    odd = ColumnSettings(time="item_id", rating="timestamp")
    assert table.load(settings_for(tmp_path / "log.csv", columns=odd)).timestamps[0] == FRAME["item_id"][0]


def test_several_columns_that_may_be_meant(tmp_path: Path) -> None:
    FRAME.rename(columns={"item_id": "sku"}).assign(isbn=1).to_csv(tmp_path / "log.csv", index=False)
    with pytest.raises(ConfigError, match=r"columns.item = \['sku', 'isbn'\]: several columns may be the item"):
        table.load(settings_for(tmp_path / "log.csv"))


def test_a_mapped_column_that_is_empty(tmp_path: Path) -> None:
    FRAME.assign(user_id="").to_csv(tmp_path / "log.csv", index=False)
    with pytest.raises(DataError) as caught:
        table.load(settings_for(tmp_path))
    (problem,) = caught.value.problems
    assert (problem.field, problem.rule) == (
        f"{tmp_path}/log.csv user_id",
        f"the column is empty in all of {len(FRAME)} rows",
    )
    assert problem.next_step.startswith("name another column: dataset.columns.user=NAME; the columns are user_id,")


def test_quoted_fields_hold_commas_and_lines(tmp_path: Path) -> None:
    noted = FRAME.assign(
        note=['said "a, b"\nand\r\nc'] * len(FRAME), title=[f'"The" Film,\n{i}' for i in FRAME["item_id"]]
    )
    noted.to_csv(tmp_path / "log.csv", index=False)
    log = table.load(settings_for(tmp_path))
    same(log, EXPECTED)
    assert log.id_map.titles[0] == f'"The" Film, {log.id_map.raw_ids[0]}'


def test_a_quote_in_a_tab_separated_log_is_a_character(tmp_path: Path) -> None:
    odd = FRAME.assign(track=['"Unclosed', '"Heroes" (1977)', '"quoted"'] * (len(FRAME) // 3))
    lines = ["\t".join(map(str, row)) for row in [odd.columns, *odd.to_numpy().tolist()]]
    (tmp_path / "log.tsv").write_text("\n".join(lines) + "\n")
    log = table.load(settings_for(tmp_path, columns=ColumnSettings(title="track")))
    same(log, EXPECTED)
    assert set(log.id_map.titles) <= {'"Unclosed', '"Heroes" (1977)', "quoted"}


def test_whole_numbers_and_fractions_are_one_id(tmp_path: Path) -> None:
    mixed = FRAME.assign(item_id=[f"{i}.0" if n % 3 else str(i) for n, i in enumerate(FRAME["item_id"])])
    mixed.to_csv(tmp_path / "log.csv", index=False)
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"{i}.0,Film {i}\n" for i in range(1, 25)))
    log = table.load(settings_for(tmp_path))
    assert log.id_map.raw_ids == tuple(str(i) for i in range(1, 25))
    assert log.id_map.untitled == 0
    assert [log.id_map.raw_ids[i] for i in log.items] == FRAME["item_id"].astype(str).tolist()


def test_items_that_no_title_file_lists_are_told_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    FRAME.to_csv(tmp_path / "log.csv", index=False)
    (tmp_path / "items.csv").write_text("id,title\n" + "".join(f"{i},Film {i}\n" for i in range(1, 21)))
    with caplog.at_level(logging.INFO):
        log = table.load(settings_for(tmp_path))
    unlisted = FRAME["item_id"] > 20
    line = f"does not list {FRAME['item_id'][unlisted].nunique()} items of the log"
    assert line in caplog.text
    assert f"{unlisted.sum()} rows): they have no title (dataset.untitled=keep)" in caplog.text
    assert caplog.text.count("does not list") == 1
    assert log.id_map.untitled == FRAME["item_id"][unlisted].nunique()
    by_id = table.load(settings_for(tmp_path, untitled="id"))
    assert by_id.id_map.untitled == 0
    assert set(by_id.id_map.titles) > {"21", "Film 20"}


def test_texts_of_items_from_their_file(tmp_path: Path) -> None:
    settings = write_table(tmp_path)
    data = load_dataset(replace(settings, item_text="{title} ({year})"))
    plain = load_dataset(settings)
    assert data.id_map.texts[0] == "The Film 1 (1961)"
    assert data.id_map.fields["year"][0] == "1961"
    assert data.id_map.titles == plain.id_map.titles == plain.id_map.texts
    assert data.id_map.fingerprint != plain.id_map.fingerprint
    assert data.split_fingerprint == plain.split_fingerprint
    with pytest.raises(
        ConfigError, match=r"item_text = 'studio': is no field of the items → the fields are title, sku"
    ):
        load_dataset(replace(settings, item_text="{title} {studio}"))


def test_three_columns_without_names_could_mean_two_things(tmp_path: Path) -> None:
    FRAME[["user_id", "item_id", "rating"]].to_csv(tmp_path / "log.csv", index=False, header=False)
    with pytest.raises(
        ConfigError, match=r"log.csv has no column names → .*dataset.header=\[user_id,item_id,timestamp\]"
    ):
        table.load(settings_for(tmp_path))


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.uint32(), pa.large_string())])
def test_text_as_polars_keeps_it(kind: pa.DataType) -> None:
    texts = pa.array([str(item) for item in FRAME["item_id"]])
    column = (
        texts.cast(pa.large_string()).dictionary_encode().cast(kind)
        if pa.types.is_dictionary(kind)
        else texts.cast(kind)
    )
    arrow = pa.Table.from_pandas(FRAME).set_column(1, "item_id", column)
    same(table.from_tables(from_memory("log", arrow), None, settings_for(Path("/nowhere"))), EXPECTED)


@pytest.mark.parametrize(("ending", "separator"), [("csv", ","), ("tsv", "\t")])
def test_a_quote_that_never_closes_swallows_nothing(ending: str, separator: str, tmp_path: Path) -> None:
    head, *rows = FRAME.to_csv(index=False, sep=separator).splitlines()
    noted = [f"{row}{separator}plain" for row in rows]
    noted[3] = f'{rows[3]}{separator}"of\ntwo lines"'
    noted[-2] = f'{rows[-2]}{separator}"open'
    (tmp_path / f"log.{ending}").write_text("\n".join([f"{head}{separator}note", *noted]) + "\n")
    same(table.load(settings_for(tmp_path)), EXPECTED)


@pytest.mark.parametrize("bad", ["1,2,3", "1,2,3,4,5"])
def test_a_large_file_is_searched_a_few_lines_at_a_time(
    bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_file, "_LARGE", 100)
    monkeypatch.setattr(text_file.TextFile, "_slow", None)
    lines = CSV.splitlines()
    for place in range(10, 90, 10):
        lines[place] = bad
    (tmp_path / "log.csv").write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        table.load(settings_for(tmp_path))
    assert [problem.field.rpartition(" ")[2] for problem in caught.value.problems[:5]] == ["11", "21", "31", "41", "51"]
    assert "3 more" in str(caught.value)


def test_a_line_is_found_behind_quoted_lines(tmp_path: Path) -> None:
    """Lines count as an editor counts them, whatever quoted fields hold."""
    head, *rows = CSV.splitlines()
    noted = [f'{row},"two\nlines"' for row in rows]
    noted[4] = ",3,4,5,x"
    (tmp_path / "log.csv").write_text("\n".join([f"{head},note", *noted]) + "\n")
    with pytest.raises(DataError, match=r"log.csv line 10 = '': user_id must not be empty"):
        table.load(settings_for(tmp_path))


def test_an_order_without_a_clock(tmp_path: Path) -> None:
    FRAME.drop(columns="timestamp").to_csv(tmp_path / "log.csv", index=False)
    with pytest.raises(ConfigError, match=r"no column that is known as time"):
        table.load(settings_for(tmp_path))
    log = table.load(settings_for(tmp_path, order="file", split="leave_one_out"))
    assert log.timestamps.tolist() == list(range(len(FRAME)))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no log of interactions → put the log there"),
        ({"x.csv": "a,b\n1,2\n"}, r"holds no log .*there are x.csv \(a, b\)"),
        ({"x.csv": CSV, "y.csv": CSV}, "holds several: x.csv, y.csv → name it: dataset.interactions_file=FILE"),
        (
            {"x.csv": CSV, "a.csv": "id,title\n1,x\n", "b.csv": "id,title\n1,x\n"},
            "several files may be the items': a.csv",
        ),
        ({"x.csv": "user_id,item_id,timestamp\n1,2,3\n1,2\n"}, r"x.csv line 3 = '1,2': has 2 fields, must have 3"),
        ({"x.csv": "user_id,user_id,timestamp\n1,2,3\n"}, r"user_id': stands in the header twice"),
        ({"x.csv": ""}, "is empty"),
        ({"x.csv": "user_id,item_id,timestamp\n"}, "holds no rows"),
        (
            {"x.jsonl": '{"user_id": 1, "item_id": 2, "timestamp": 3}\n[1]\n'},
            r"x.jsonl line 2 = .*must be a JSON object",
        ),
        ({"x.jsonl": '{"user_id": 1,\n'}, r"x.jsonl line 1 = .*must be a JSON object"),
        ({"x.json": "[1, 2]"}, r"entry 1 = '1': must be an object"),
        ({"x.parquet": "no parquet"}, "x.parquet.*cannot be read"),
        ({"x.csv.gz": "no gzip\n1\n"}, "holds no log"),
    ],
)
def test_what_a_user_is_told(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ProblemsFound, match=message):
        table.load(settings_for(tmp_path))


def test_what_is_no_table_stands_in_nobodys_way(tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "log.csv", index=False)
    (tmp_path / "README.txt").write_text("the data, the files, and the licence\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "notes.json").write_text("{}")
    (tmp_path / "prices.csv").write_text("item_id,price,,\n1,2,,\n")
    same(table.load(settings_for(tmp_path)), EXPECTED)


def test_a_torn_archive_and_a_zip(tmp_path: Path) -> None:
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(CSV.encode())[:-20])
    with pytest.raises(DataError, match=r"log.csv.gz.*cannot be read"):
        table.load(settings_for(tmp_path / "log.csv.gz"))
    (tmp_path / "log.csv").write_bytes(b"PK\x03\x04rest")
    with pytest.raises(DataError, match="is a zip archive → unpack it"):
        table.load(settings_for(tmp_path / "log.csv"))


def test_another_encoding_by_key_and_by_message(tmp_path: Path) -> None:
    named = FRAME.assign(user_id=["Zoë" if u == 1 else str(u) for u in FRAME["user_id"]])
    (tmp_path / "log.csv").write_bytes(named.to_csv(index=False).encode("iso-8859-1"))
    with pytest.raises(
        DataError, match=r"log.csv line 2 .* is not utf-8 text → name its encoding .*iconv -f ISO-8859-1"
    ):
        table.load(settings_for(tmp_path))
    same(table.load(settings_for(tmp_path, encoding="iso-8859-1")), EXPECTED)
    with pytest.raises(DataError, match="'klingon': is no encoding"):
        table.load(settings_for(tmp_path, encoding="klingon"))


def test_no_python_object_a_field(tmp_path: Path) -> None:
    """Codes are made from Arrow's dictionaries: the distinct ids alone become text."""
    FRAME.to_csv(tmp_path / "log.csv", index=False)
    log = table.load(settings_for(tmp_path))
    assert log.users.dtype == log.items.dtype == np.int64
    assert log.timestamps.dtype == np.float64
