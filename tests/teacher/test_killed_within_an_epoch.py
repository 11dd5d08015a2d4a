"""An epoch of a large teacher is hours: one that is killed within it goes on to the same teacher, to the last bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from src.core.checkpoints import Checkpoint, NoCheckpoint, snapshot
from src.student.settings import EvaluationSettings
from src.teacher.settings import LoraSettings, TeacherSettings
from src.teacher.training import TeacherRun, train_teacher
from tests.dying import DyingCheckpoint, Killed
from tests.fixtures import cycle_data
from tests.teacher.builders import CPU, SETTINGS, encoder_of
from tests.teacher.title_builders import TITLE_SETTINGS, save_random_causal


def trained(folder: Path, settings: TeacherSettings, checkpoint: Checkpoint, ema: float) -> TeacherRun:
    """Two epochs of three steps each, saved after each step and after the epoch's evaluation."""
    loop = replace(settings.train.loop, epochs=2, patience=9, checkpoint_minutes=1e-9, ema=ema)
    if settings.objective == "item_ce":
        loop = replace(loop, monitor="ndcg_5")
    train = replace(settings.train, loop=loop, learning_rate=1e-2, group_by_length=True)
    settings = replace(settings, llm=str(folder), train=train, lora=LoraSettings(8, 4, 16.0, dropout=0.2))
    evaluation = EvaluationSettings(ks=(1, 5))
    return train_teacher(
        settings, cycle_data(24, 6), encoder_of(), str(folder), CPU, 0, evaluation, checkpoint=checkpoint
    )


@pytest.mark.parametrize(("after", "ema"), [(2, 0.0), (6, 0.0), (6, 0.9)])  # in the first epoch, and in the second
@pytest.mark.parametrize("settings", [SETTINGS, TITLE_SETTINGS], ids=lambda settings: settings.objective)
def test_killed_within_an_epoch(tmp_path: Path, settings: TeacherSettings, after: int, ema: float) -> None:
    folder, checkpoint = save_random_causal(tmp_path / "causal"), DyingCheckpoint(after)
    whole = trained(folder, settings, NoCheckpoint(), ema)
    with pytest.raises(Killed):
        trained(folder, settings, checkpoint, ema)
    saved = checkpoint.load()
    assert saved is not None
    assert saved["progress"]["steps"] == after - after // 5  # after the fourth saving an epoch is through
    resumed = trained(folder, settings, checkpoint, ema)
    assert resumed.fit.history == whole.fit.history
    wanted, found = snapshot(whole.teacher), snapshot(resumed.teacher)
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
