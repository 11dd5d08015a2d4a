"""Training a student alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from src.core.errors import ArtefactError, ConfigError, StopTraining, TrainingFailed
from src.core.training import LoopSettings
from src.data.examples import SealedExamples
from src.student.artefact import ID_MAP, WEIGHTS, load_student, save_student
from src.student.datamodule import StudentData
from src.student.losses import dro_at, dro_terms
from src.student.models import build_student
from src.student.objectives import StudentObjective, negative_sampler
from src.student.settings import EvaluationSettings, StudentSettings
from src.student.trainer_baseline import train_student
from tests.fixtures import NUM_ITEMS, WINDOW, cycle_data, student_of

EVALUATION = EvaluationSettings(ks=(1, 5))


def settings_of(architecture: str, **changes: Any) -> StudentSettings:
    """A small student that trains in a moment."""
    loop = LoopSettings(epochs=3, batch_size=16, monitor="ndcg_5")
    options: dict[str, Any] = {
        "architecture": architecture,
        "width": 8,
        "loop": loop,
    }
    if architecture == "caser":
        options |= {"filter_sizes": (2, 3), "num_filters": 3}
    return student_of(**{**options, **changes})


@pytest.fixture(scope="module")
def data() -> StudentData:
    """Forty training rows over twelve items."""
    return StudentData.of(cycle_data(), "cpu")


@pytest.mark.parametrize("architecture", ["sasrec", "gru4rec", "caser"])
def test_a_student_learns_what_can_be_learned(architecture: str) -> None:
    loop = LoopSettings(epochs=60, batch_size=16, monitor="ndcg_5", patience=60)
    settings = settings_of(architecture, width=16, learning_rate=0.03, dropout=0.0, loop=loop)
    run = train_student(settings, EVALUATION, StudentData.of(cycle_data(train=120), "cpu"), seed=0)
    assert run.fit.best_metrics["ndcg_5"] > 0.9
    assert run.fit.history[0]["train_loss"] > 2 * run.fit.history[-1]["train_loss"]


def test_the_test_split_is_never_opened_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: SealedExamples, reason: str, record: Path) -> None:
        raise AssertionError("the test split was opened")

    monkeypatch.setattr(SealedExamples, "open", refuse)
    train_student(settings_of("sasrec"), EVALUATION, StudentData.of(cycle_data(), "cpu"), seed=0)


def test_selection_reads_the_validation_split() -> None:
    """Another validation split, the same training rows: other metrics, the same training losses."""
    runs = [
        train_student(settings_of("sasrec"), EVALUATION, StudentData.of(cycle_data(validation=rows), "cpu"), seed=0)
        for rows in (3, 10)
    ]
    first, second = (run.fit.history for run in runs)
    assert [row["train_loss"] for row in first] == [row["train_loss"] for row in second]
    assert [row["ndcg_5"] for row in first] != [row["ndcg_5"] for row in second]


def test_the_reported_metrics_are_those_on_record(data: StudentData) -> None:
    reported = list[dict[str, float]]()

    def report(epoch: int, metrics: Mapping[str, float]) -> None:
        reported.append(dict(metrics))
        if epoch == 2:
            raise StopTraining

    run = train_student(settings_of("sasrec"), EVALUATION, data, seed=0, report=report)
    assert reported == run.fit.history
    assert run.fit.stopped
    assert set(reported[0]) == {"train_loss", *(f"{m}_{k}" for m in ("recall", "ndcg", "hit_ratio") for k in (1, 5))}


def test_a_learning_rate_that_explodes_fails_the_run(data: StudentData) -> None:
    with pytest.raises(TrainingFailed):
        train_student(settings_of("gru4rec", learning_rate=3e38, loss="bce"), EVALUATION, data, seed=0)


def test_bce_scores_few_items_as_the_whole_catalogue_would(data: StudentData) -> None:
    torch.manual_seed(0)
    student = build_student(settings_of("caser"), NUM_ITEMS, WINDOW).eval()
    rows, items = torch.arange(6), torch.randint(0, NUM_ITEMS, (6, 3))
    representation = student.encode(data.train.history[rows], data.train.length[rows])
    assert torch.allclose(student.score_items(representation, items), student.scorer(representation).gather(1, items))


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_dro_adds_its_weighted_term(data: StudentData, loss: str) -> None:
    student = build_student(settings_of("sasrec"), NUM_ITEMS, WINDOW).eval()
    rows = torch.arange(10)

    def loss_of(weight: float) -> torch.Tensor:
        settings = settings_of("sasrec", loss=loss, dro_weight=weight, dro_beta=0.5)
        draw = negative_sampler(data, 2, torch.Generator().manual_seed(4))
        return StudentObjective(student, data, settings, draw).loss(rows)

    logits = student(data.train.history[rows], data.train.length[rows])
    dro = dro_at(dro_terms(logits, data.propensity, 0.5), data.train.target[rows].unsqueeze(1)).mean()
    assert loss_of(0.25).item() == pytest.approx((loss_of(0.0) + 0.25 * dro).item(), rel=1e-6)


def test_negatives_are_neither_in_the_history_nor_the_target(data: StudentData) -> None:
    rows = torch.arange(len(data.train))
    negatives = negative_sampler(data, 50, torch.Generator().manual_seed(0))(rows)
    assert negatives.shape == (len(rows), 50)
    forbidden = torch.cat([data.train.history, data.train.target.unsqueeze(1)], dim=1)
    assert not (negatives.unsqueeze(2) == forbidden.unsqueeze(1)).any()
    assert 0 <= int(negatives.min()) <= int(negatives.max()) < NUM_ITEMS


def test_a_filter_longer_than_the_history_is_refused_before_training(data: StudentData) -> None:
    with pytest.raises(ConfigError, match="student.filter_sizes"):
        train_student(settings_of("caser", filter_sizes=(2, WINDOW + 1)), EVALUATION, data, seed=0)


@pytest.mark.parametrize(
    "wrong",
    [{"width": 0}, {"heads": 3}, {"dropout": 1.0}, {"loss": "hinge"}, {"widht": 8}, {"learning_rate": float("nan")}],
)
def test_a_wrong_setting_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings_of("sasrec", **wrong)


def save(folder: Path) -> None:
    """A student of the cycle data."""
    data = cycle_data()
    student = build_student(settings_of("sasrec"), NUM_ITEMS, WINDOW)
    save_student(folder, student, settings_of("sasrec"), data.id_map, data.fingerprints(), {"note": 1})


def test_a_saved_student_of_other_items_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "student")
    load_student(tmp_path / "student", cycle_data())
    with pytest.raises(ArtefactError, match="knows other items"):
        load_student(tmp_path / "student", cycle_data(num_items=13))


@pytest.mark.parametrize("missing", ["manifest.json", WEIGHTS, ID_MAP])
def test_an_unfinished_student_is_refused(tmp_path: Path, missing: str) -> None:
    save(tmp_path / "student")
    (tmp_path / "student" / missing).unlink()
    with pytest.raises(ArtefactError):
        load_student(tmp_path / "student")


def test_a_saved_student_is_weights_id_map_and_manifest_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path / "student")
    assert {path.name for path in (tmp_path / "student").iterdir()} == {"manifest.json", WEIGHTS, ID_MAP}
