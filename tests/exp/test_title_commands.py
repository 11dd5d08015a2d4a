"""What `run_teacher` finds wrong with titles, candidates and rankings before anything is trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from src.config.overrides import format_value
from src.config.reading import read_settings
from src.core.logging import log_to
from src.exp import run_teacher, tune_teacher
from src.tuning import teacher_search
from src.tuning.preflight import prepare_space
from src.tuning.search_settings import SearchSettings, experiment
from tests.data.toy_sources import ITEMS, write_recbole
from tests.pipeline.toy import toy_arguments


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Commands are started in an empty folder; log files are closed at the end."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    log_to(None)


def said(capfd: pytest.CaptureFixture[str], arguments: list[str], entry: Any = run_teacher.ENTRY) -> str:
    """What a refused command says, on one line; nothing was built, and there is no result folder."""
    assert entry.execute(arguments) == 2
    shown = capfd.readouterr().out
    assert "Traceback" not in shown
    assert not Path("result").exists()
    assert not list(Path("cache").glob("*"))
    return re.sub(r"\s+", " ", shown)


def of_files(folder: Path, title: str) -> list[str]:
    """Arguments for a dataset of files whose item 3 bears this title."""
    write_recbole(folder)
    file = folder / "toy.item"
    text = file.read_text(encoding="utf-8")
    assert "Film 3, The" in text
    file.write_text(text.replace("Film 3, The", title), encoding="utf-8")
    cache = format_value(str(folder / "cache"))
    return ["dataset=recbole", f"dataset.root={folder}", "dataset.name=toy", f"runtime.cache={cache}"]


@pytest.mark.parametrize("teacher", ["tiny", "title"])
def test_an_empty_title(workplace: Path, capfd: pytest.CaptureFixture[str], teacher: str) -> None:
    found = said(capfd, [*of_files(workplace, " "), f"teacher={teacher}"])
    assert f"1 of {ITEMS} are missing (raw ids 3)" in found
    assert "add the titles to the dataset's files" in found


def test_a_title_longer_than_the_context(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    endless = " ".join(str(number) for number in range(300))
    arguments = [*of_files(workplace, endless), "teacher=title", "teacher.title.candidates=2"]
    found = said(capfd, arguments)
    assert "title of 3 = '0 1 2 3" in found
    assert "the language model reads 288" in found
    assert "shorten it, or use another model" in found


def test_more_candidates_than_items(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    more = ["teacher=title", "teacher.title.candidates=25", "teacher.export.budget=9999"]
    found = said(capfd, toy_arguments(workplace, *more))
    assert "2 problems" in found
    assert "teacher.title.candidates = 25: exceeds the catalogue's 24 items" in found


@pytest.mark.parametrize("teacher", ["tiny", "title"])
def test_more_labels_than_items(workplace: Path, capfd: pytest.CaptureFixture[str], teacher: str) -> None:
    found = said(capfd, toy_arguments(workplace, f"teacher={teacher}", "teacher.export.top_n=25"))
    assert "teacher.export.top_n = 25: must not exceed the catalogue's 24 items" in found


def test_candidates_that_do_not_fit_into_the_prompt(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = toy_arguments(workplace, "teacher=title", "teacher.title.candidates=4", "teacher.prompt.max_tokens=40")
    found = said(capfd, arguments)
    assert "a prompt with the 4 longest titles as candidates and one of the history needs" in found


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["teacher.export.ranking=grounded"], "must be auto or item_head with teacher.objective = item_ce"),
        (["teacher=title", "teacher.export.ranking=item_head"], "must be auto or constrained or grounded"),
        (["teacher=title", "teacher.export.beams=7"], "beams = 7 must be at least export.top_n = 20"),
        (["teacher=title", "teacher.train.loop.monitor=ndcg_20"], "must be hit_ratio_1"),
        (["teacher.train.loop.monitor=hit_ratio_1"], "must be one of recall_5"),
    ],
)
def test_what_does_not_go_together(
    workplace: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], rule: str
) -> None:
    assert rule in said(capfd, toy_arguments(workplace, *arguments))


#: a teacher by name, and what it needs to fit the toy's catalogue
TEACHERS = {"title": ["teacher=title", "teacher.title.candidates=4"], "tiny": ["teacher=tiny"]}


@pytest.mark.parametrize(("teacher", "metric"), [("title", "ndcg_20"), ("tiny", "hit_ratio_1")])
def test_a_search_knows_the_metrics_of_its_teacher(
    workplace: Path, capfd: pytest.CaptureFixture[str], teacher: str, metric: str
) -> None:
    arguments = toy_arguments(workplace, *TEACHERS[teacher], f"tuning.metric={metric}")
    found = said(capfd, arguments, tune_teacher.ENTRY)
    assert f"tuning.metric = '{metric}': must be one of" in found


@pytest.mark.parametrize(
    ("teacher", "name", "metric"), [("title", "teacher_title", "hit_ratio_1"), ("tiny", "teacher", "ndcg_20")]
)
def test_each_teacher_has_a_search_space_of_its_own(workplace: Path, teacher: str, name: str, metric: str) -> None:
    arguments = toy_arguments(workplace, *TEACHERS[teacher])
    settings = read_settings("tune_teacher", arguments, SearchSettings)[0]
    assert teacher_search.document(settings) == name
    space = prepare_space(experiment(settings), settings.tuning, "teacher", name)
    assert space.metric == metric
    # a writer has no head whose learning rate could be searched
    assert ("teacher.train.head_learning_rate" in space.parameters) == (teacher == "tiny")
