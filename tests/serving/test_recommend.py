"""Whole files of histories: formats, forms, unknown ids, what is written and what is not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from src.core.errors import ArtefactError, ConfigError, DataError, ProblemsFound
from src.data.dataset import load_dataset
from src.exp.recommend import ENTRY
from src.serving.histories import HistoryColumns, HistoryFile
from src.serving.recommend import RecommendSettings, _parts, check_recommend, recommend_file
from src.serving.students import ServedStudent, open_student
from tests.serving.finished import NUM_ITEMS, WORLD, finished, student

#: users with their raw ids; b has one that nobody knows, c has nothing else
USERS: dict[str, list[str]] = {"a": ["100", "101"], "b": ["102", "x1", "103"], "c": ["x2"], "d": []}
KNOWN = {"a": [0, 1], "b": [2, 3], "d": []}


def write(folder: Path, name: str) -> Path:
    """`USERS` in the form and the format that a name tells."""
    path, ids = folder / name, [list(map(str, ids)) for ids in USERS.values()]
    if name == "rows.parquet":
        pq.write_table(pa.table({"user": list(USERS), "history": pa.array(ids, pa.list_(pa.string()))}), path)
    elif name == "rows.csv":
        lines = [f'{user},"{json.dumps(ids)}"'.replace('["', '[""').replace('"]', '""]').replace('", "', '"", ""')
                 for user, ids in USERS.items()]  # fmt: skip
        path.write_text("user,history\n" + "\n".join(lines) + "\n")
    elif name == "rows.tsv":
        path.write_text("user\thistory\n" + "".join(f"{user}\t{' '.join(ids)}\n" for user, ids in USERS.items()))
    elif name == "rows.jsonl.gz":
        lines = [
            json.dumps({"user": u, "history": [int(i) if i.isdigit() else i for i in h]}) for u, h in USERS.items()
        ]
        path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    else:
        rows = [(user, item, 10 * place) for user, ids in USERS.items() for place, item in enumerate(ids)]
        frame = pd.DataFrame(rows, columns=["user", "item", "time"]).iloc[::-1]
        if name == "log.csv":
            frame["time"] = pd.to_datetime(frame["time"], unit="s").dt.strftime("%Y-%m-%d %H:%M:%S")
            frame.to_csv(path, index=False)
        else:
            frame.to_parquet(path, index=False)
    return path


ROWS = ["rows.parquet", "rows.csv", "rows.tsv", "rows.jsonl.gz"]


def asked(student_folder: Path, histories: Path, out: Path, **more: Any) -> RecommendSettings:
    return RecommendSettings(student=student_folder, histories=histories, out=out, **{"k": 4, **more})


def answers(folder: Path, histories: Path, out: Path, **more: Any) -> tuple[pd.DataFrame, dict[str, Any]]:
    """What is written, and the counts."""
    settings = asked(folder, histories, out, **more)
    counts = recommend_file(settings, check_recommend(settings))
    read = pd.read_parquet if out.suffix == ".parquet" else pd.read_csv
    return read(out), counts.as_dict()


def expected(served: ServedStudent, known: dict[str, list[int]], k: int = 4) -> list[tuple[str, int, str, str]]:
    rows = []
    for user, history in known.items():
        rows += [(user, rank, one.item, one.title) for rank, one in enumerate(served.recommend(history, k, True), 1)]
    return rows


def shown(frame: pd.DataFrame) -> list[tuple[str, int, str, str]]:
    return [(row.user, row.rank, str(row.item), row.title) for row in frame.itertuples()]


@pytest.mark.parametrize("batch_size", [1, 512])
@pytest.mark.parametrize("name", ROWS)
def test_a_row_a_user_in_every_format(
    transitions: Path, served: ServedStudent, tmp_path: Path, name: str, batch_size: int
) -> None:
    frame, counts = answers(transitions, write(tmp_path, name), tmp_path / "out.parquet", batch_size=batch_size)
    assert list(frame.columns) == ["user", "rank", "item", "title", "score"]
    assert shown(frame) == expected(served, KNOWN)
    told = {key: counts[key] for key in ("users", "recommended", "left_out", "popular", "items", "unknown_items")}
    assert told == {"users": 4, "recommended": 3, "left_out": 1, "popular": 0, "items": 6, "unknown_items": 2}
    assert counts["example"] == "x1"


@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
def test_a_log_is_put_in_order(transitions: Path, served: ServedStudent, tmp_path: Path, name: str) -> None:
    frame, _ = answers(transitions, write(tmp_path, name), tmp_path / "out.csv", batch_size=2)
    # the file's order is upside down: b comes before a, and who has no row is not there
    assert shown(frame) == expected(served, {"b": [2, 3], "a": [0, 1]})


def test_a_log_without_times_keeps_the_order_of_its_rows(transitions: Path, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("who,sku\n1,101\n2,100\n1,103\n1,102\n")
    file = HistoryFile.open(tmp_path / "log.csv", HistoryColumns(user="who", item="sku"))
    batches = list(file.batches(open_student(transitions).catalogue, 10))
    assert [(batch.users, batch.items.tolist(), batch.lengths.tolist()) for batch in batches] == [
        (["1", "2"], [1, 3, 2, 0], [3, 1])
    ]


def test_what_was_seen_may_be_recommended_where_that_is_asked(transitions: Path, tmp_path: Path) -> None:
    out, more = tmp_path / "out.parquet", {"k": NUM_ITEMS, "exclude_seen": False}
    frame, _ = answers(transitions, write(tmp_path, "rows.parquet"), out, **more)
    assert frame.groupby("user").size().to_dict() == dict.fromkeys("abd", NUM_ITEMS)
    out.unlink()
    frame, _ = answers(transitions, write(tmp_path, "rows.parquet"), out, k=NUM_ITEMS)
    assert frame.groupby("user").size().to_dict() == {"a": NUM_ITEMS - 2, "b": NUM_ITEMS - 2, "d": NUM_ITEMS}


def test_a_stranger_gets_what_is_popular(tmp_path: Path) -> None:
    data = load_dataset(WORLD)
    model = student("transitions", num_items=data.num_items)
    folder = finished(tmp_path / "result", model, data.id_map, data.fingerprints(), WORLD)
    path = tmp_path / "rows.tsv"
    path.write_text("user\thistory\nstranger\tnobody knows this\n")
    frame, counts = answers(folder, path, tmp_path / "out.parquet", unknown="popular", k=3)
    best = np.argsort(-data.item_counts, kind="stable")[:3]
    assert frame["item"].tolist() == [data.id_map.raw_ids[item] for item in best]
    assert frame["score"].tolist() == data.item_counts[best].tolist()
    assert (counts["popular"], counts["recommended"]) == (1, 0)


def test_a_result_answers_as_its_export_does(transitions: Path, popularity: Path, tmp_path: Path) -> None:
    rows = write(tmp_path, "rows.parquet")
    of_export, _ = answers(transitions, rows, tmp_path / "export.parquet")
    of_result, _ = answers(transitions.parent / "result", rows, tmp_path / "result.parquet")
    assert shown(of_export) == shown(of_result)
    assert np.allclose(of_export["score"], of_result["score"], atol=1e-4)


def test_one_long_history_does_not_widen_the_others() -> None:
    lengths = np.array([2, 3, 5_000_000, 4, 1])
    assert [part.tolist() for part in _parts(np.arange(5), lengths)] == [[0, 1], [2], [3, 4]]
    assert [part.tolist() for part in _parts(np.arange(0), lengths)] == []


# ------------------------------------------------------------------------------------------------------- bad input


def fields(settings: RecommendSettings) -> list[str]:
    with pytest.raises(ProblemsFound) as caught:
        check_recommend(settings)
    return [problem.field for problem in caught.value.problems]


def test_every_problem_is_told_together(transitions: Path, tmp_path: Path) -> None:
    assert fields(RecommendSettings()) == ["student", "histories", "out"]
    rows = write(tmp_path, "rows.parquet")
    (tmp_path / "taken.csv").write_text("")
    assert fields(asked(transitions, rows, tmp_path / "taken.csv", k=NUM_ITEMS + 1)) == ["k", "out"]
    assert fields(asked(transitions, rows, tmp_path / "out.xlsx")) == ["out"]
    assert fields(asked(transitions, tmp_path / "none.csv", tmp_path / "out.csv")) == ["histories"]
    assert fields(asked(transitions, tmp_path / "none.txt", tmp_path / "out.csv")) == ["histories"]
    assert fields(asked(transitions, rows, tmp_path / "out.csv", unknown="popular")) == ["unknown"]
    named = HistoryColumns(user="customer")
    assert fields(asked(transitions, rows, tmp_path / "out.csv", columns=named)) == ["columns.user"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.parquet", "taken.csv"]


def test_a_column_that_is_not_there_is_told_with_those_that_are(transitions: Path, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,what\na,1\n")
    with pytest.raises(ConfigError, match="one of user, what"):
        check_recommend(asked(transitions, tmp_path / "log.csv", tmp_path / "out.csv"))


@pytest.mark.parametrize("name", ["rows.parquet", "rows.tsv", "log.csv"])
def test_unknown_ids_can_be_refused(transitions: Path, tmp_path: Path, name: str) -> None:
    settings = asked(transitions, write(tmp_path, name), tmp_path / "out.csv", unknown="refuse")
    with pytest.raises(DataError, match="2 of the histories' items are unknown"):
        check_recommend(settings)


def test_a_damaged_row_leaves_no_file(transitions: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"user": "a", "history": ["100"]}\n{"user": \n')
    settings = asked(transitions, tmp_path / "rows.jsonl", tmp_path / "out.csv", batch_size=1)
    with pytest.raises(DataError, match="line 2"):
        recommend_file(settings, check_recommend(settings))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
def test_a_heading_that_is_no_text_is_told(transitions: Path, tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    path.write_bytes(path.read_bytes().replace(b"user", b"us\xe9r"))
    with pytest.raises(ProblemsFound, match="cannot be read"):
        answers(transitions, path, tmp_path / "out.csv")


def test_the_rows_of_an_array_are_histories(transitions: Path, served: ServedStudent, tmp_path: Path) -> None:
    rows = pa.array([["100", "101"], ["102", "103"]], pa.list_(pa.string(), 2))
    pq.write_table(pa.table({"user": ["a", "b"], "history": rows}), tmp_path / "rows.parquet")
    frame, _ = answers(transitions, tmp_path / "rows.parquet", tmp_path / "out.parquet")
    assert shown(frame) == expected(served, {"a": [0, 1], "b": [2, 3]})


def test_times_that_cannot_be_read_are_told_with_one_of_them(transitions: Path, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,time\na,100,yesterday\n")
    settings = asked(transitions, tmp_path / "log.csv", tmp_path / "out.csv")
    with pytest.raises(DataError, match="yesterday"):
        recommend_file(settings, check_recommend(settings))


def test_the_command_writes_its_file_and_its_record(
    transitions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "rows.tsv")
    assert ENTRY.execute([f"student={transitions}", "histories=rows.tsv", "out=out.csv", f"k={NUM_ITEMS + 1}"]) == 2
    assert not (tmp_path / "result").exists()
    assert ENTRY.execute([f"student={transitions}", "histories=rows.tsv", "out=out.csv", "k=3"]) == 0
    assert len(pd.read_csv("out.csv")) == 9
    (folder,) = (tmp_path / "result").iterdir()
    record = json.loads((folder / "manifest.json").read_text())
    assert record["recommendations"]["users"] == 4
    assert "unknown to the student: 2 of 6 items" in capfd.readouterr().out


def test_dates_are_read_as_in_a_training_log(transitions: Path, tmp_path: Path) -> None:
    # alone, 05.03. could be the 3rd of May: the 13th tells that the day comes first in the whole column
    (tmp_path / "log.csv").write_text(
        "user,item,time\na,100,13.02.2024 10:00\na,101,05.03.2024 10:00\na,102,04.03.2024 10:00\n"
    )
    file = HistoryFile.open(tmp_path / "log.csv", HistoryColumns())
    (batch,) = file.batches(open_student(transitions).catalogue, 10)
    assert batch.items.tolist() == [0, 2, 1]


def test_a_list_of_objects_is_read_as_in_a_training_log(transitions: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('[{"user": "a", "history": [100, 102]}, {"user": "b", "history": ["101"]}]')
    (batch,) = HistoryFile.open(tmp_path / "rows.jsonl", HistoryColumns()).batches(
        open_student(transitions).catalogue, 10
    )
    assert (batch.users, batch.items.tolist(), batch.lengths.tolist()) == (["a", "b"], [0, 2, 1], [2, 1])


def test_columns_of_a_shops_log_are_found_by_the_names_that_training_knows(transitions: Path, tmp_path: Path) -> None:
    log = "customer,sku,purchased_at,stars\nann,103,2024-03-02T00:00:00+09:00,5\nann,101,2024-03-01T00:00:00+09:00,\n"
    (tmp_path / "orders.csv").write_text(log)
    (tmp_path / "users.jsonl").write_text('{"user": "ann", "history": ["101", "103"]}\n')
    for name, out in (("orders.csv", "a.csv"), ("users.jsonl", "b.csv")):
        settings = RecommendSettings(student=transitions, histories=tmp_path / name, out=tmp_path / out, k=3)
        recommend_file(settings, check_recommend(settings))
    # the dates decide what came first, as they do in training
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()


@pytest.mark.parametrize("role", ["user", "item", "time"])
def test_a_column_that_was_named_and_is_not_there_is_refused(role: str, transitions: Path, tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("user,item,time\nann,103,1\n")
    columns = HistoryColumns(**{role: "nothing"})
    settings = RecommendSettings(
        student=transitions, histories=tmp_path / "orders.csv", out=tmp_path / "a.csv", columns=columns
    )
    with pytest.raises(ConfigError, match=rf"columns\.{role} = 'nothing'.*one of user, item, time"):
        check_recommend(settings)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    model = student("transitions")
    for tensor in model.buffers():
        tensor.fill_(value)
    folder, rows = finished(tmp_path / "r", model), write(tmp_path, "rows.parquet")
    with pytest.raises(ArtefactError, match=r"student = 'r': its scores are no finite numbers for . of . histories"):
        answers(folder, rows, tmp_path / "o.csv")
    assert not (tmp_path / "o.csv").exists()


def test_who_has_seen_everything_gets_nothing(tmp_path: Path) -> None:
    pd.DataFrame({"user": ["a"], "history": [[str(100 + n) for n in range(NUM_ITEMS)]]}).to_parquet(
        tmp_path / "h.parquet"
    )
    found, _ = answers(finished(tmp_path / "r", student("transitions")), tmp_path / "h.parquet", tmp_path / "o.parquet")
    assert found.empty
