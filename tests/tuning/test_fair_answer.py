"""The answer of a fair comparison: every final model is ranked by itself, and gone before the next one is read."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.core.documents import read_json_document
from src.evaluation.example_histories import read_examples
from src.pipeline.stages import Stages
from src.student.artefact import save_student
from src.student.base import Recommender
from src.student.models import require_network
from src.student.trainer_baseline import new_student
from src.tuning import journal
from src.tuning.fair_answer import publish_answer
from src.tuning.fair_document import arms_table, load_answer
from tests.pipeline.toy import new_run, toy_stages
from tests.tuning.killing import DyingBackend
from tests.tuning.test_fair import ARMS, FINAL_SEEDS, WIDER, Toy, note_of

SETTINGS = ["distill.lam=0", "distill.alpha=0", "distill.teachers=[titles]", "student.prior=none"]


@pytest.fixture
def models(tmp_path: Path) -> dict[str, list[Path]]:
    """Students that nobody has trained, for every arm and seed."""
    stages = toy_stages(tmp_path / "made", *SETTINGS)
    found: dict[str, list[Path]] = {}
    settings, data = require_network(stages.settings.student), stages.data
    for place, arm in enumerate(ARMS):
        for seed in FINAL_SEEDS:
            folder = tmp_path / "models" / f"{arm}_{seed}"
            folder.mkdir(parents=True)
            student = new_student(settings, stages.student_data, 10 * place + seed)
            save_student(folder, student.eval(), settings, data.id_map, data.fingerprints(), {})
            found.setdefault(arm, []).append(folder)
    return found


@pytest.fixture(autouse=True)
def in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals that nobody waits for, and that nobody kills."""
    monkeypatch.setattr(journal, "JournalFileBackend", DyingBackend)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    DyingBackend.at = DyingBackend.written = 0


def test_one_final_model_at_a_time_is_in_memory_and_each_counts(
    models: dict[str, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages, folder = toy_stages(tmp_path / "work", *SETTINGS), new_run(tmp_path / "result")
    alive: list[weakref.ref[Recommender]] = []
    read, opened = Stages.read_student, list[str]()

    def watched(self: Stages, place: Path) -> Recommender:
        assert [one() for one in alive] == [None] * len(alive)
        opened.append("test" if (folder.path / "test_openings.jsonl").exists() else "validation")
        student = read(self, place)
        alive.append(weakref.ref(student))
        return student

    fair = Toy(folder.path / "search").run()
    monkeypatch.setattr(Stages, "read_student", watched)
    publish_answer(stages, fair, models, folder, resamples=50, reopen_test=False)
    # popularity and four finals on each split, first on validation; then those whose lists are shown
    assert opened[:10] == ["validation"] * 5 + ["test"] * 5
    ranks = pd.read_csv(folder.path / "ranks.csv")
    answer = {arm["arm"]: arm for arm in read_json_document(folder.path / "fair.json")["arms"]}
    assert list(answer) == [*ARMS, "popularity"]
    for arm in ARMS:
        own = [ranks[(ranks.model == f"{arm} (seed {seed})") & (ranks.split == "test")] for seed in FINAL_SEEDS]
        wanted = [float(np.where(one["rank"] <= 20, 1 / np.log2(one["rank"] + 1), 0).mean()) for one in own]
        assert answer[arm]["values_per_seed"] == pytest.approx(wanted)
        assert answer[arm]["test"] == pytest.approx(float(np.mean(wanted)))
    assert (folder.path / "dashboard_files").is_dir()


def test_the_answer_says_which_arms_could_not_be_trained(models: dict[str, list[Path]], tmp_path: Path) -> None:
    stages, folder = toy_stages(tmp_path / "work", *SETTINGS), new_run(tmp_path / "result")
    fair = Toy(folder.path / "search", space=WIDER, fails=lambda job: job.study in ("text", "everything")).run()
    publish_answer(stages, fair, models, folder, resamples=50, reopen_test=False)
    answer = load_answer(folder.path / "fair.json")
    assert [arm["arm"] for arm in answer["arms"]] == [*ARMS, "popularity"]
    (text,) = [arm.title for arm in fair.described if arm.name == "text"]
    reason = "no trial completed; reasons: the loss is nan"
    assert answer["missing"] == {text: reason, "everything": reason}
    assert arms_table(answer).row_count == len(ARMS) + 3
    for name in ("text", "everything"):
        assert f"Left out of the comparison: {reason}" in note_of(fair.arms[name])


def test_a_teacher_whose_language_model_is_gone_is_asked_for_no_lists(
    models: dict[str, list[Path]], tmp_path: Path
) -> None:
    gone = [f"teacher.llm={tmp_path / 'gone'}", "distill.teachers=[llm]", "student.prior=none"]
    stages, folder = toy_stages(tmp_path / "work", *gone), new_run(tmp_path / "result")
    assert stages.uses_own_teacher
    publish_answer(stages, Toy(folder.path / "search").run(), models, folder, resamples=50, reopen_test=False)
    assert set(read_examples(folder.path / "metrics" / "examples.json").models) == {"baseline", "winner", "closed form"}
