"""What a user may get wrong at either end, on the commands as they are typed and in Python: each time field, value,
rule and next step, exit code 2, and nothing written."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from src.api import Dataset, Student, tune_distill
from src.core.errors import ProblemsFound
from src.serving.export import ExportStudentSettings, check_export, export_student
from tests.serving.finished import NUM_ITEMS, finished, id_map, student

ROWS = 240


def orders() -> pd.DataFrame:
    """A shop's log, with names of its own."""
    number = np.arange(ROWS)
    return pd.DataFrame(
        {
            "customer": [f"c{row % 20}" for row in number],
            "sku": [f"s{row * 7 % 30}" for row in number],
            "purchased_at": [f"2024-03-{1 + row // 24:02d}T{row % 24:02d}:00:00" for row in number],
            "stars": number % 5 + 1,
        }
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result, its export, one that was changed, and a result over another catalogue."""
    root = tmp_path_factory.mktemp("made")
    settings = ExportStudentSettings(result=finished(root / "result", student("transitions")), out=root / "export")
    export_student(settings, check_export(settings), root / "export")
    shutil.copytree(root / "export", root / "changed")
    with (root / "changed" / "id_map.parquet").open("ab") as handle:
        handle.write(b"x")
    finished(root / "other", student("popularity", num_items=30), id_map(30))
    return root


@pytest.fixture
def place(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with good and bad files, where the commands run."""
    monkeypatch.chdir(tmp_path)
    for folder in made.iterdir():
        shutil.copytree(folder, tmp_path / folder.name)
    log = orders()
    log.to_csv("good.csv", index=False)
    log.rename(columns={"sku": "thing"}).to_csv("nameless.csv", index=False)
    log.assign(purchased_at=["soon", "later", "never", "soon", "31/31/2024", *log["purchased_at"][5:]]).to_csv(
        "times.csv", index=False
    )
    for column in log:
        log.assign(**{column: ""}).to_csv(f"no_{column}.csv", index=False)
    pd.DataFrame({"sku": [f"s{item}" for item in range(30)], "label": "", "title": "x"}).to_csv(
        "items.csv", index=False
    )
    Path("known.csv").write_text("user,history\na,100 101\n")
    Path("unknown.csv").write_text("user,history\na,nope 101\n")
    Path("strangers.csv").write_text("user,history\na,nope no\nb,neither\n")
    return tmp_path


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        yield held.getsockname()[1]


def tree(folder: Path) -> dict[str, int]:
    """Every file below a folder, with its size."""
    return {str(part.relative_to(folder)): part.stat().st_size for part in folder.rglob("*") if part.is_file()}


LOG = "dataset=table dataset.root=. dataset.split=leave_one_out dataset.interactions_file="
RECOMMEND = "recommend student=export out=out.csv histories="

#: the command; then what stands in its problem's field, value, rule and next step
COMMANDS = {
    "a column that is not there": (
        f"describe {LOG}good.csv dataset.columns.item=product",
        ("dataset.columns.item", "'product'", "is no column of", "customer, sku, purchased_at, stars"),
    ),
    "no column is known as an item": (
        f"tune_distill {LOG}nameless.csv",
        ("dataset.columns.item", "None", "no column that is known as item", "customer, thing, purchased_at, stars"),
    ),
    "a title that the items' file does not have": (
        f"describe {LOG}good.csv dataset.items_file=items.csv dataset.columns.title=name",
        ("dataset.columns.title", "'name'", "is no column of", "the columns are sku, label, title"),
    ),
    "times that cannot be read": (
        f"describe {LOG}times.csv",
        (
            "times.csv purchased_at",
            "['soon', 'later', 'never']",
            "5 of 240 values are neither a number nor a date, 4 different ones (times.csv line 2, times.csv line 3",
            "mend or remove these rows, or say how dates are written: dataset.time_format=",
        ),
    ),
    "times that cannot be read, of a search": (
        f"tune_distill {LOG}times.csv",
        ("times.csv purchased_at", "['soon', 'later', 'never']", "5 of 240 values", "dataset.time_format="),
    ),
    "a student that no memory holds": (
        "run_student_baseline student.width=100000000",
        ("student.width", "100000000", "training takes at least", "lower it"),
    ),
    "a teacher's encoder that no memory holds": (
        "run_teacher teacher.encoder.width=100000000",
        ("teacher.encoder.width", "100000000", "training takes at least", "lower it"),
    ),
    "no time at all": (
        f"describe {LOG}no_purchased_at.csv",
        ("no_purchased_at.csv purchased_at", "''", "240 of 240 values are empty", "name another one"),
    ),
    "no user at all": (
        f"describe {LOG}no_customer.csv",
        ("no_customer.csv customer", "''", "the column is empty in all of 240 rows", "dataset.columns.user=NAME"),
    ),
    "no item at all": (
        f"describe {LOG}no_sku.csv",
        ("no_sku.csv sku", "''", "the column is empty in all of 240 rows", "dataset.columns.item=NAME"),
    ),
    "no rating at all": (
        f"describe {LOG}no_stars.csv dataset.columns.rating=stars",
        ("no_stars.csv stars", "''", "dataset.columns.rating holds no number", "dataset.columns.rating=null"),
    ),
    "no title at all": (
        f"describe {LOG}good.csv dataset.items_file=items.csv dataset.columns.title=label",
        ("items.csv label", "''", "dataset.columns.title is empty", "dataset.columns.title=null"),
    ),
    "an unknown id that is refused": (
        f"{RECOMMEND}unknown.csv unknown=refuse",
        ("histories", "'nope'", "1 of the histories' items are unknown", "unknown=skip or unknown=popular"),
    ),
    "histories of another catalogue": (
        f"{RECOMMEND}strangers.csv",
        ("histories", "'nope'", "none of the 3 items of the histories is known", "name the student of this catalogue"),
    ),
    "histories with times that cannot be read": (
        f"{RECOMMEND}times.csv",
        ("columns.time = purchased_at", "['soon', 'later', 'never']", "5 of 240 values", "mend or remove"),
    ),
    "histories of nobody": (
        f"{RECOMMEND}no_customer.csv",
        ("columns.user", "''", "customer is empty in 240 rows", "name another column"),
    ),
    "a column that the histories do not have": (
        f"{RECOMMEND}good.csv columns.item=thing",
        ("columns.item", "'thing'", "is no column of good.csv", "customer, sku, purchased_at, stars"),
    ),
    "more items than there are": (
        f"{RECOMMEND}known.csv k={NUM_ITEMS + 1}",
        ("k", str(NUM_ITEMS + 1), f"must not exceed the {NUM_ITEMS} items", f"k={NUM_ITEMS} or less"),
    ),
    "an export that was changed": (
        "recommend student=changed histories=known.csv out=out.csv",
        ("file", "id_map.parquet", "is damaged", "python -m src.exp.export"),
    ),
    "a changed export that is served": (
        "serve student=changed port=0",
        ("file", "id_map.parquet", "is damaged", "python -m src.exp.export"),
    ),
    "an output whose folder is a file": (
        "recommend student=export histories=known.csv out=good.csv/out.csv",
        ("out", "good.csv/out.csv", "good.csv is no folder", "choose a writable folder"),
    ),
    "an output that is there": (
        "recommend student=export histories=known.csv out=good.csv",
        ("out", "good.csv", "exists", "name a new file"),
    ),
    "an export over somebody's folder": (
        "export result=result out=other",
        ("out", "other", "exists and is not empty", "name a new folder"),
    ),
    "an export into a file": (
        "export result=result out=good.csv/student",
        ("out", "good.csv/student", "good.csv is no folder", "choose a writable folder"),
    ),
    "an export of an export": (
        "export result=export",
        ("result", "export", "holds no best_student", "name a result of"),
    ),
    "a result that is not there": (
        "export result=nowhere",
        ("folder", "nowhere", "does not exist", "name a folder"),
    ),
    "a student of another catalogue": (
        "serve students=[export,other] port=0",
        ("students", "'other'", "knows other items than", "serve students of one catalogue"),
    ),
    "a port in use": (
        "serve student=export port={port}",
        ("port", "{port}", "cannot be listened on at 127.0.0.1", "port=0 for any that is free"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COMMANDS)
def test_a_command_tells_field_value_rule_and_step(
    case: str, place: Path, taken: int, capfd: pytest.CaptureFixture[str]
) -> None:
    typed, told = COMMANDS[case]
    command, *arguments = typed.format(port=taken).split()
    before = tree(place)
    assert import_module(f"src.exp.{command}").ENTRY.execute(arguments) == 2
    shown = " ".join(capfd.readouterr().out.split())
    field, value, rule, step = (part.format(port=taken) for part in told)
    problems = [line for line in shown.split(" • ")[1:] if line.find(field) in range(line.find(value))]
    assert any(rule in line and step in line.rpartition(" → ")[2] for line in problems), f"{told} in {shown}"
    assert tree(place) == before


def frame_problem(**changed: Any) -> Callable[[Path], object]:
    """A dataset from a frame with these columns changed."""
    return lambda place: Dataset.from_dataframe(orders().assign(**changed), "customer", "sku", "purchased_at")


def recommended(histories: Any = (("100",),), folder: str = "export", **options: Any) -> Callable[[Path], object]:
    """What a student says about histories."""
    return lambda place: Student.load(place / folder).recommend(histories, **options)


PYTHON = {
    "a column that is not there": (
        lambda place: Dataset.from_dataframe(orders()),
        ("user", "user", "is no column", "use one of customer, sku, purchased_at, stars"),
    ),
    "times that cannot be read": (
        frame_problem(purchased_at=["soon", "later", "never", "at last"] * (ROWS // 4)),
        ("purchased_at", ["soon", "later", "never"], "240 of 240 values are neither", "time_format"),
    ),
    "a column that is empty": (
        frame_problem(sku=None),
        ("sku", "", "240 of 240 values are empty", "mend or drop these rows"),
    ),
    "times that are empty": (
        frame_problem(purchased_at=np.nan),
        ("purchased_at", "", "240 of 240 values are empty", "name another one"),
    ),
    "titles that are empty": (
        lambda place: Dataset.from_dataframe(orders().assign(t=None), "customer", "sku", "purchased_at", title="t"),
        ("t", "", "the column of titles is empty", "title=None"),
    ),
    "ratings that are none": (
        lambda place: Dataset.from_dataframe(orders().assign(r="x"), "customer", "sku", "purchased_at", rating="r"),
        ("r", "x", "240 of 240 ratings are no numbers", "rating=None"),
    ),
    "a column that stands there twice": (
        lambda place: Dataset.from_dataframe(pd.concat([orders(), orders()[["sku"]]], axis=1)),
        ("table columns", "sku", "stands there twice", "keep one"),
    ),
    "no column of times": (
        lambda place: Dataset.from_dataframe(orders(), "customer", "sku", None),
        ("time", None, "names no column, and every interaction has one", "time=NAME"),
    ),
    "a table without rows": (
        lambda place: Dataset.from_dataframe(orders()[:0], "customer", "sku", "purchased_at"),
        ("table", 0, "holds no rows", "a row for each interaction"),
    ),
    "a path in place of a table": (
        lambda place: Dataset.from_dataframe("good.csv"),
        ("table", "str", "cannot be read as a table", "pass a pandas, polars or pyarrow table"),
    ),
    "a table in place of a dataset": (
        lambda place: tune_distill(orders()),  # type: ignore[arg-type]
        ("data", "DataFrame", "must be a Dataset", "Dataset.from_dataframe"),
    ),
    "an unknown id that is refused": (
        recommended([["100", "nope"]], unknown="refuse"),
        ("histories", "nope", "1 ids are unknown", 'unknown="skip"'),
    ),
    "one history in place of several": (
        recommended(["100", "101"]),
        ("histories", "100", "must be a list with a list", "histories=[["),
    ),
    "more items than there are": (
        recommended(k=NUM_ITEMS + 1),
        ("k", NUM_ITEMS + 1, "must not exceed", f"k={NUM_ITEMS} or less"),
    ),
    "half an item": (recommended(k=2.5), ("k", 2.5, "must be a whole number", "k=10")),
    "an export that was changed": (
        recommended(folder="changed"),
        ("file", "id_map.parquet", "is damaged", "python -m src.exp.export"),
    ),
    "an export into a file": (
        lambda place: Student.load(place / "result").to_onnx(place / "good.csv" / "student"),
        ("out", "student", "is no folder", "choose a writable folder"),
    ),
    "a copy over somebody's folder": (
        lambda place: Student.load(place / "export").save(place / "other"),
        ("folder", "other", "exists", "name a new folder"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PYTHON)
def test_python_tells_the_same(case: str, place: Path) -> None:
    do, (field, value, rule, step) = PYTHON[case]
    before = tree(place)
    with pytest.raises(ProblemsFound) as caught:
        do(place)
    problem = caught.value.problems[0]
    assert problem.field == field
    assert problem.value == value or str(problem.value).endswith(str(value))
    assert rule in problem.rule
    assert step in problem.next_step
    assert tree(place) == before


# ----------------------------------------------------------------------------------- types that a column may come in


def _typed(column: str, kind: Any) -> Callable[[pd.DataFrame], Any]:
    return lambda frame: frame.assign(**{column: frame[column].astype(kind)})


def _arrow(column: str, kind: pa.DataType) -> Callable[[pd.DataFrame], Any]:
    def change(frame: pd.DataFrame) -> pa.Table:
        table = pa.Table.from_pandas(frame, preserve_index=False)
        return table.set_column(table.column_names.index(column), column, table[column].cast(kind))

    return change


def _polars(change: Callable[[Any, Any], Any]) -> Callable[[pd.DataFrame], Any]:
    def convert(frame: pd.DataFrame) -> Any:
        polars = pytest.importorskip("polars")
        return change(polars.from_pandas(frame), polars)

    return convert


STAMPS = pd.to_datetime(orders()["purchased_at"])

#: ids and times of every type that people have say what whole numbers and ISO text say
TYPES: dict[str, Callable[[pd.DataFrame], Any]] = {
    "categories": _typed("item", "category"),
    "strings": _typed("item", "string"),
    "nullable numbers": _typed("item", "Int64"),
    "fractions": _typed("item", float),
    "pyarrow numbers": _typed("item", pd.ArrowDtype(pa.int64())),
    "decimals": _arrow("item", pa.decimal128(22, 2)),
    "dictionaries": lambda frame: _arrow("item", pa.string())(frame).set_column(
        1, "item", _arrow("item", pa.string())(frame)["item"].dictionary_encode()
    ),
    "string views": _arrow("item", pa.string_view()),
    "bytes": lambda frame: frame.assign(item=[str(item).encode() for item in frame["item"]]),
    "dates": lambda frame: frame.assign(time=STAMPS),
    "dates with a zone": lambda frame: frame.assign(time=STAMPS.dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo")),
    "pyarrow dates": lambda frame: frame.assign(time=STAMPS.astype(pd.ArrowDtype(pa.timestamp("ms")))),
    "objects of two zones": lambda frame: frame.assign(
        time=[
            stamp.tz_localize("UTC").tz_convert("Asia/Tokyo" if row % 2 else "UTC") for row, stamp in enumerate(STAMPS)
        ]
    ),
    "periods": lambda frame: frame.assign(time=STAMPS.dt.to_period("h")),
    "milliseconds": lambda frame: frame.assign(time=STAMPS.astype("int64") // 10**6),
    "days first": lambda frame: frame.assign(time=STAMPS.dt.strftime("%d.%m.%Y %H:%M")),
    "polars": _polars(lambda table, polars: table),
    "polars, computed later": _polars(lambda table, polars: table.lazy()),
    "polars categories": _polars(
        lambda table, polars: table.with_columns(polars.col("item").cast(polars.String).cast(polars.Categorical))
    ),
    "polars decimals": _polars(
        lambda table, polars: table.with_columns(polars.col("item").cast(polars.Decimal(12, 2)))
    ),
}


@pytest.mark.parametrize("kind", TYPES)
def test_a_frame_of_another_type_is_the_same_log(kind: str, place: Path) -> None:
    log = orders()
    frame = pd.DataFrame(
        {"user": log["customer"], "item": log["sku"].str[1:].astype("int64"), "time": log["purchased_at"]}
    )
    plain = Dataset.from_dataframe(frame, split="leave_one_out").sequences.fingerprints()
    if kind == "days first":  # the 10th of March is the last day: nothing tells day from month
        with pytest.raises(ProblemsFound, match="day first or month first"):
            Dataset.from_dataframe(TYPES[kind](frame))
        given = Dataset.from_dataframe(TYPES[kind](frame), split="leave_one_out", time_format="%d.%m.%Y %H:%M")
    else:
        given = Dataset.from_dataframe(TYPES[kind](frame), split="leave_one_out")
    assert json.dumps(given.sequences.fingerprints()) == json.dumps(plain)
