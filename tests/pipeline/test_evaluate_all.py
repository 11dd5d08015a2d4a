"""Results side by side: one student in memory at a time, and the test split closed until all of them could be read."""

from __future__ import annotations

import weakref
from pathlib import Path

import pandas as pd
import pytest
import yaml

from src.core.errors import ArtefactError
from src.core.paths import MANIFEST, write_json
from src.core.settings import nested_plain
from src.pipeline.evaluate_all import check_results, run_eval_all
from src.pipeline.settings import EvaluateSettings
from src.pipeline.stages import Stages
from src.student.artefact import save_student
from src.student.base import Recommender
from src.student.models import require_network
from src.student.trainer_baseline import new_student
from tests.pipeline.toy import new_run, toy_stages


@pytest.fixture
def settings(tmp_path: Path) -> EvaluateSettings:
    """Two results, each with a student that nobody has trained."""
    stages = toy_stages(tmp_path / "made", "student.prior=none")
    chosen, data = stages.settings, stages.data
    student, folders = require_network(chosen.student), []
    for seed in (1, 2):
        folder = tmp_path / f"result_{seed}"
        (folder / "best_student").mkdir(parents=True)
        made = new_student(student, stages.student_data, seed).eval()
        save_student(folder / "best_student", made, student, data.id_map, data.fingerprints(), {})
        (folder / "settings.yaml").write_text(yaml.safe_dump(nested_plain(chosen)))
        write_json(folder / MANIFEST, {"fingerprints": data.fingerprints()})
        folders.append(folder)
    return EvaluateSettings(chosen.evaluation, chosen.runtime, tuple(folders))


def test_one_student_is_in_memory_at_a_time(
    settings: EvaluateSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Recommender]] = []
    read, folder = Stages.read_student, new_run(tmp_path / "table")

    def watched(self: Stages, place: Path) -> Recommender:
        assert [one() for one in alive] == [None] * len(alive)
        student = read(self, place)
        alive.append(weakref.ref(student))
        return student

    monkeypatch.setattr(Stages, "read_student", watched)
    run_eval_all(settings, check_results(settings), folder)
    # two students and popularity, on either split
    assert len(alive) == 3 * 2
    table = pd.read_csv(folder.path / "comparison.csv")
    assert set(table.model) == {"popularity", "result_1/student", "result_2/student"}
    assert set(table.split) == {"validation", "test"}


def test_a_student_that_cannot_be_read_opens_no_test_split(settings: EvaluateSettings, tmp_path: Path) -> None:
    weights = settings.results[1] / "best_student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    folder, compared = new_run(tmp_path / "table"), check_results(settings)
    with pytest.raises(ArtefactError):
        run_eval_all(settings, compared, folder)
    assert not folder.test_record.exists()
