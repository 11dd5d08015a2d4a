"""Beside a student: its baseline and what its teacher labelled; and the page on which a person sees all three."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import uvicorn
import yaml
from fastapi.testclient import TestClient

from src.core.documents import read_json_document
from src.core.errors import ConfigError
from src.core.paths import write_json, write_text
from src.data.dataset import load_dataset
from src.data.examples import SequenceData
from src.data.teacher_outputs import TeacherOutputs, save_teacher_outputs
from src.serving.app import Limits, build_app
from src.serving.beside import LabelledTeacher, stand_beside
from src.serving.serve import ServeSettings, check_serve
from tests.serving.browser import FOUND, Browser
from tests.serving.finished import WORLD, finished, student

ROWS, TOP = 4, 6


@pytest.fixture(scope="module")
def data() -> SequenceData:
    return load_dataset(WORLD)


def outputs(data: SequenceData) -> TeacherOutputs:
    """Labels of the last training examples: the items 0..5, and scores 0, -1, …"""
    ids = data.train.example_id[-ROWS:]
    return TeacherOutputs(
        example_id=ids,
        candidates=np.tile(np.arange(TOP), (ROWS, 1)),
        scores=np.tile(-np.arange(TOP, dtype=np.float32), (ROWS, 1)),
        distances=np.tile(np.arange(TOP, dtype=np.float32), (ROWS, 1)),
        sequence_embedding=np.zeros((ROWS, 2), np.float32),
        item_embedding=np.zeros((data.num_items, 2), np.float32),
        manifest={"fingerprints": data.fingerprints()},
    )


@pytest.fixture(scope="module")
def result(data: SequenceData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search's result: what stands beside it lies in the cache that its settings name."""
    root = tmp_path_factory.mktemp("beside")
    model = student("transitions", num_items=data.num_items)
    folder = finished(root / "result", model, data.id_map, data.fingerprints(), WORLD)
    other = finished(root / "other", student("popularity", num_items=data.num_items), data.id_map, data.fingerprints())
    shutil.copytree(other / "best_student", root / "cache" / "student" / "b1")
    (root / "cache" / "teacher_outputs").mkdir()
    save_teacher_outputs(root / "cache" / "teacher_outputs" / "t1", outputs(data), data.id_map)
    manifest = read_json_document(folder / "manifest.json")
    write_json(
        folder / "manifest.json", {**manifest, "fingerprints": {"student_baseline": "b1", "teacher_outputs": "t1"}}
    )
    settings = {"dataset": {**asdict(WORLD), "root": str(WORLD.root)}, "runtime": {"cache": str(root / "cache")}}
    write_text(folder / "settings.yaml", yaml.safe_dump(settings))
    return folder


def test_baseline_and_teacher_come_out_of_the_cache(result: Path, data: SequenceData) -> None:
    settings = ServeSettings(student=result, beside=result, port=0)
    plan = check_serve(settings)
    with plan.bound:
        assert [one.name for one in plan.students] == ["baseline", "result", "teacher"]
        assert all(one.catalogue.id_map.raw_ids == data.id_map.raw_ids for one in plan.students)


def test_a_teacher_answers_for_what_it_labelled_and_for_nothing_else(data: SequenceData) -> None:
    teacher = LabelledTeacher(outputs(data), data)
    history, length = data.train.past.take(np.arange(len(data.train))[-ROWS:]).dense(data.history_length)
    seen = history[0, : length[0]].tolist()
    found = teacher.recommend(seen, TOP, exclude_seen=False)
    assert [one.item for one in found] == list(data.id_map.raw_ids[:TOP])
    assert [one.score for one in found] == [0, -1, -2, -3, -4, -5]
    unseen = [item for item in range(TOP) if item not in seen]
    assert [one.item for one in teacher.recommend(seen, TOP, True)] == [data.id_map.raw_ids[item] for item in unseen]
    # what came before the window does not matter, for the teacher did not see it either
    assert len(teacher.recommend([*[3] * data.history_length, *history[0].tolist()][: length[0] + 10], 2, False)) in (
        0,
        2,
    )
    assert teacher.recommend([0, 0, 0, 0, 0, 0, 0], TOP, False) == []
    # more places than labels
    assert len(teacher.recommend(seen, data.num_items, False)) == TOP
    labelled = {tuple(row[:count]) for row, count in zip(history.tolist(), length.tolist(), strict=True)}
    assert {tuple(teacher.labelled(number)) for number in range(ROWS)} == labelled
    assert teacher.labelled(len(labelled)) == teacher.labelled(0)


def test_what_is_gone_is_told(result: Path, tmp_path: Path) -> None:
    shutil.copytree(result, tmp_path / "result")
    content = yaml.safe_load((tmp_path / "result" / "settings.yaml").read_text())
    content["runtime"]["cache"] = str(tmp_path / "nothing")
    write_text(tmp_path / "result" / "settings.yaml", yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="not in the cache|in the cache any more"):
        stand_beside(tmp_path / "result")


def test_a_labelled_history_can_be_asked_for(result: Path, data: SequenceData) -> None:
    plan = check_serve(ServeSettings(student=result, beside=result, port=0))
    with plan.bound, TestClient(build_app(plan.students, Limits(), None, 1)) as client:
        assert client.get("/health").json()["teacher"] == "teacher"
        history = client.get("/labelled", params={"number": 1}).json()
        asked = {"histories": [[one["item"] for one in history]], "k": 3, "exclude_seen": False, "student": "teacher"}
        named = client.post("/recommend", json=asked).json()["recommendations"][0]
        assert [one["item"] for one in named] == list(data.id_map.raw_ids[:3])


@pytest.fixture
def address(result: Path) -> Iterator[str]:
    """A server with baseline, student and teacher, in a thread."""
    plan = check_serve(ServeSettings(student=result, beside=result, port=0))
    app = build_app(plan.students, Limits(), None, os.cpu_count() or 1)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [plan.bound]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{plan.bound.getsockname()[1]}/"
    server.should_exit = True
    thread.join()
    plan.bound.close()


_TITLES = (
    "[...document.querySelectorAll('article')].map((a) => [...a.querySelectorAll('.title')].map((t) => t.innerText))"
)


@pytest.mark.slow
@pytest.mark.skipif(FOUND is None, reason="there is no Chromium")
def test_a_person_builds_a_history_and_sees_all_three_side_by_side(
    address: str, result: Path, data: SequenceData
) -> None:
    baseline, own, teacher = check_serve(ServeSettings(student=result, beside=result, port=0)).students
    title = data.id_map.titles[7]
    with Browser() as browser:
        browser.go(address)
        browser.until("document.querySelectorAll('article').length === 3")
        assert browser.run("[...document.querySelectorAll('h3')].map((h) => h.innerText)") == [
            "baseline", "result", "teacher",
        ]  # fmt: skip
        # a title is searched and chosen with the mouse
        browser.type("#search", title.upper())
        browser.until("!!document.querySelector('#found button')")
        browser.click("#found li:first-child button")
        browser.until("document.querySelectorAll('#history li').length === 1")
        assert browser.run("document.querySelector('#history span').innerText") == title
        found = data.id_map.titles.index(title)
        wanted = [[one.title for one in student.recommend([found], 10, True)] for student in (baseline, own)]
        text = json.dumps(wanted, ensure_ascii=False, separators=(",", ":"))
        browser.until(f"JSON.stringify({_TITLES}.slice(0, 2)) === {json.dumps(text)}")
        assert "It did not label this history." in browser.run("document.querySelector('#answers').innerText")
        # what is recommended can be added, what was added be removed
        browser.click("article:nth-child(2) li:nth-child(3) button")
        browser.until("document.querySelectorAll('#history li').length === 2")
        assert browser.run("document.querySelector('#history li:last-child span').innerText") == wanted[1][2]
        browser.click("#history li:first-child button")
        browser.until("document.querySelectorAll('#history li').length === 1")
        # a history of which the teacher has said something
        browser.click("#example")
        length = len(teacher.labelled(0))  # type: ignore[attr-defined]
        browser.until(f"document.querySelectorAll('#history li').length === {length}")
        browser.click("#seen")
        browser.until(f"{_TITLES}[2].length === {TOP}")
        assert browser.run(_TITLES)[2] == list(data.id_map.titles[:TOP])
        browser.type("#search", "no such title")
        browser.until("!!document.querySelector('#found .none')")
        assert browser.errors == []
