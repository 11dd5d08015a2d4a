"""The running mean of the weights, in trainings of students: trial 0 is still the baseline, a kill changes nothing."""

from __future__ import annotations

import pytest
import torch

from src.core.checkpoints import Checkpoint, NoCheckpoint
from src.core.training import LoopSettings
from src.distill.data_bridge import align
from src.distill.settings import ActiveSettings, DistillSettings
from src.distill.trainer_distill import DistillRun, train_distilled
from src.student.datamodule import StudentData
from src.student.trainer_baseline import train_student
from tests.distill.test_trainer_distill import EVALUATION, LABELLED, NOTHING, same_weights, student_settings
from tests.dying import DyingCheckpoint, Killed
from tests.fixtures import cycle_data, outputs_for

EVERYTHING = DistillSettings(lam=0.5, alpha=0.3, ed_weight=0.3, embedding_loss_weight=0.5, candidate_topk=4)


def distilled(settings: DistillSettings, ema: float, checkpoint: Checkpoint) -> DistillRun:
    """Two epochs of three steps, saved after each of them, and after each evaluation."""
    data = cycle_data()
    loop = LoopSettings(epochs=2, batch_size=16, monitor="ndcg_5", checkpoint_minutes=1e-9, ema=ema)
    return train_distilled(
        student_settings(loop=loop),
        settings,
        ActiveSettings(),
        EVALUATION,
        StudentData.of(data, "cpu"),
        align(outputs_for(data.train, LABELLED), data.train, 4, "cpu"),
        7,
        checkpoint=checkpoint,
    )


def test_without_distillation_the_mean_is_the_baselines_to_the_last_bit() -> None:
    found = distilled(NOTHING, 0.9, NoCheckpoint())
    loop = LoopSettings(epochs=2, batch_size=16, monitor="ndcg_5", ema=0.9)
    baseline = train_student(student_settings(loop=loop), EVALUATION, StudentData.of(cycle_data(), "cpu"), seed=7)
    assert same_weights(found.student, baseline.student)
    assert not same_weights(found.student, distilled(NOTHING, 0.0, NoCheckpoint()).student)


@pytest.mark.parametrize("after", [1, 3, 5, 8])
def test_a_killed_distillation_goes_on_to_the_same_mean(after: int) -> None:
    whole, checkpoint = distilled(EVERYTHING, 0.9, NoCheckpoint()), DyingCheckpoint(after)
    with pytest.raises(Killed):
        distilled(EVERYTHING, 0.9, checkpoint)
    again = distilled(EVERYTHING, 0.9, checkpoint)
    assert again.fit.history == whole.fit.history
    assert same_weights(again.student, whole.student)


def test_off_is_as_if_there_were_no_such_setting() -> None:
    """A mean with a decay that rounds to nothing is the weights: the same training, the same epochs."""
    off, on = (distilled(EVERYTHING, ema, NoCheckpoint()).fit.history for ema in (0.0, 1e-12))
    assert [row["train_loss"] for row in off] == [row["train_loss"] for row in on]
    assert torch.tensor([row["ndcg_5"] for row in off]).allclose(torch.tensor([row["ndcg_5"] for row in on]))
