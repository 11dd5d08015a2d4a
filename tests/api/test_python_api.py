"""The second way in: tables in, students out. The example of the documentation is run as it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from src.api import Dataset, Result, Student
from src.core.errors import ArtefactError, ConfigError, DataError
from src.core.logging import log_to
from src.core.paths import REPOSITORY, write_json
from tests.serving.finished import NUM_ITEMS, finished, student

DOCUMENT = REPOSITORY / "docs" / "python_api.md"
NOTEBOOK = REPOSITORY / "docs" / "notebooks" / "python_api.ipynb"


def orders(users: int = 30, events: int = 12) -> pd.DataFrame:
    """A small shop: everybody buys what comes next, and begins somewhere."""
    rows = [
        (f"c{user}", f"S{(user * 7 + step) % 24}", 1_700_000_000 + 3600 * (step * users + user))
        for user in range(users)
        for step in range(events)
    ]
    frame = pd.DataFrame(rows, columns=["customer", "sku", "bought_at"])
    frame["name"] = "Thing\tnumber " + frame["sku"]
    return frame


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


COLUMNS: dict[str, Any] = {"user": "customer", "item": "sku", "time": "bought_at", "title": "name"}


@pytest.mark.slow
def test_the_example_of_the_documentation_runs(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    orders().to_csv("orders.csv", index=False)
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)
    found: dict[str, Any] = {}
    try:
        exec(compile(code, str(DOCUMENT), "exec"), found)
    finally:
        log_to(None)
    result, best = found["result"], found["student"]
    assert {"baseline", "distilled"} <= set(result.comparison["model"])
    assert result.study.is_file()
    assert result.report.is_file()
    assert len(best.recommend([["S1", "S2"]], k=5)) == 5
    assert "Thing number S" in capfd.readouterr().out


@pytest.mark.slow
def test_the_notebook_runs(workplace: Path) -> None:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert [cell["outputs"] for cell in content["cells"] if cell["cell_type"] == "code" and cell["outputs"]] == []
    found: dict[str, Any] = {}
    try:
        for cell in content["cells"]:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), cell["id"], "exec"), found)
    finally:
        log_to(None)
    assert found["result"].report.is_file()
    assert (workplace / "my_student" / "model.onnx").is_file()


# ----------------------------------------------------------------------------------------------------------- tables


def test_a_table_becomes_the_same_log_whatever_its_types() -> None:
    frame = orders()
    plain = Dataset.from_dataframe(frame, **COLUMNS)
    dated = frame.assign(bought_at=pd.to_datetime(frame["bought_at"], unit="s"))
    text = frame.assign(bought_at=dated["bought_at"].dt.strftime("%Y-%m-%dT%H:%M:%S"))
    zoned = frame.assign(bought_at=dated["bought_at"].dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo"))
    wanted = plain.sequences
    assert (wanted.num_items, wanted.statistics.users, wanted.statistics.interactions) == (24, 30, 360)
    assert wanted.id_map.titles[0] == "Thing number S0"
    for other in (dated, text, zoned):
        assert Dataset.from_dataframe(other, **COLUMNS).sequences.fingerprints() == wanted.fingerprints()


def test_numbers_are_ids_without_a_decimal_point() -> None:
    frame = orders().assign(sku=lambda f: f["sku"].str[1:].astype(float))
    raw_ids = Dataset.from_dataframe(frame, **COLUMNS).sequences.id_map.raw_ids
    assert set(raw_ids) == {str(number) for number in range(24)}


def test_a_table_is_written_once(workplace: Path) -> None:
    first, second = (Dataset.from_dataframe(orders(), **COLUMNS) for _ in range(2))
    assert first == second
    assert len(list((workplace / "data/cache/tables").iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"bought_at": "soon"}, "soon"),
        ({"bought_at": np.nan}, r"1 of 360 values are empty \(row 7\)"),
        ({"sku": None}, r"1 of 360 values are empty \(row 7\)"),
        ({"sku": "a\tb"}, "tab"),
    ],
)
def test_a_value_that_cannot_be_read_is_told(workplace: Path, change: dict[str, Any], shown: str) -> None:
    frame = orders().astype({"bought_at": object})
    for column, value in change.items():
        frame.loc[7, column] = value
    with pytest.raises(DataError, match=shown):
        Dataset.from_dataframe(frame, **COLUMNS)
    assert list(workplace.iterdir()) == []


def test_every_column_that_is_not_there_is_told_with_those_that_are(workplace: Path) -> None:
    with pytest.raises(ConfigError, match="one of customer, sku, bought_at, name") as caught:
        Dataset.from_dataframe(orders())
    assert [problem.field for problem in caught.value.problems] == ["user", "item", "time"]
    with pytest.raises(ConfigError, match=r"dataset\.window"):
        Dataset.from_dataframe(orders(), **COLUMNS, window=0)
    assert list(workplace.iterdir()) == []


# --------------------------------------------------------------------------------------------------------- students


@pytest.fixture
def result(workplace: Path) -> Result:
    return Result.load(finished(workplace / "result", student("transitions")))


def test_a_student_recommends_what_its_model_scores_best(result: Result) -> None:
    best = result.best_student
    found = best.recommend([["100", 101.0], [], ["102", "nobody"]], k=3)
    assert found["history"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found["rank"].tolist() == [1, 2, 3] * 3
    wanted = best.opened.recommend([0, 1], 3, True)
    assert found["item"].tolist()[:3] == [one.item for one in wanted]
    assert not {"100", "101"} & set(found["item"][:3])
    everything = best.recommend([["100"]], k=NUM_ITEMS)
    assert len(everything) == NUM_ITEMS - 1
    assert best.recommend([], k=3).empty
    once = (iter(history) for history in (["100", "101"], []))
    assert best.recommend(once, k=3).equals(best.recommend([["100", "101"], []], k=3))


def test_a_student_says_why_it_does_not_answer(result: Result) -> None:
    best = result.best_student
    with pytest.raises(DataError, match="nobody"):
        best.recommend([["nobody"]], unknown="refuse")
    for wrong in ({"k": NUM_ITEMS + 1}, {"k": 0}, {"unknown": "ask"}):
        with pytest.raises(ConfigError):
            best.recommend([["100"]], **wrong)  # type: ignore[arg-type]


def test_a_result_tells_the_verdict_of_a_search_of_either_kind(result: Result) -> None:
    assert result.verdicts == []
    helped, unclear = "distillation helped", "it cannot be told"
    found = {"comparison": None, "verdict": "helped", "sentence": helped}
    write_json(result.folder / "metrics" / "verdict.json", {"against": {"baseline": found, "popularity": found}})
    assert Result.load(result.folder).verdicts == [helped]
    difference = {"name": "b", "against": "a", "difference": 0.0, "low": -0.1, "high": 0.1, "sentence": unclear}
    arm = {"arm": "a", "test": 0.1}
    write_json(result.folder / "fair.json", {"metric": "recall_20", "arms": [arm], "comparisons": [difference]})
    assert Result.load(result.folder).verdicts == [unclear]


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("best_params.yaml", b"- 1\n", "best_params"),
        ("comparison.csv", b"model\n\xff\n", "comparison"),
        ("metrics/verdict.json", b"[]", "verdicts"),
        ("fair.json", b"{}", "verdicts"),
    ],
)
def test_a_damaged_file_of_a_result_is_named(result: Result, name: str, content: bytes, read: str) -> None:
    (result.folder / name).parent.mkdir(exist_ok=True)
    (result.folder / name).write_bytes(content)
    with pytest.raises(ArtefactError, match=Path(name).name):
        getattr(result, read)


def test_results_and_students_are_copied_and_never_overwritten(result: Result, workplace: Path) -> None:
    result.save("kept")
    kept = Result.load("kept")
    assert kept.comparison.equals(result.comparison)
    student_folder = result.best_student.save("mine")
    assert Student.load(student_folder).recommend([["100"]], k=2).equals(result.best_student.recommend([["100"]], k=2))
    with pytest.raises(ConfigError, match="exists"):
        result.save("kept")
    with pytest.raises(ArtefactError):
        Student.load(workplace / "nowhere")
