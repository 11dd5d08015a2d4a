"""The teacher's training in the shape that a trial needs; apart from the students', who load no language model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from src.core.checkpoints import Checkpoint
from src.core.training import NO_CHECKPOINT, Report
from src.data.examples import Examples, SequenceData
from src.pipeline.cache import StageCache
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages
from src.teacher.factory import save_teacher
from src.teacher.training import TeacherRun, train_teacher
from src.tuning.trained_model import TrainedModel


def train_teacher_trial(settings: ExperimentSettings, report: Report, checkpoint: Checkpoint) -> TrainedModel:
    """Train a teacher; language model and encoder come from the stage cache, where the driver has put them.

    Args:
        settings: of the trial.
        report: is told of each epoch.
        checkpoint: keeps the training's state.
    """
    stages = Stages(settings, StageCache(settings.runtime.cache))
    run = _train(settings, stages, stages.data, report, checkpoint)
    return TrainedModel(
        run.fit, run.teacher, lambda folder: save_teacher(folder, run.teacher, stages.data, run.summary())
    )


def train_longest(settings: ExperimentSettings, rows: int, report: Report) -> None:
    """Train on the longest histories alone, and rank one batch: what a step needs at most.

    Args:
        settings: of the trial.
        rows: how many histories.
        report: is told of each epoch.
    """

    def longest(examples: Examples, count: int) -> Examples:
        return examples.take(np.argsort(-examples.length, kind="stable")[:count])

    stages = Stages(settings, StageCache(settings.runtime.cache))
    data, batch = stages.data, settings.teacher.export.batch_size
    few = replace(data, train=longest(data.train, rows), validation=longest(data.validation, batch))
    every = replace(settings.teacher, train_rows=0, validation_rows=0)
    _train(replace(settings, teacher=every), stages, few, report, NO_CHECKPOINT)


def _train(
    settings: ExperimentSettings, stages: Stages, data: SequenceData, report: Report, checkpoint: Checkpoint
) -> TeacherRun:
    return train_teacher(
        settings.teacher, data, stages.load_encoder(), stages.llm_folder, stages.device, settings.seed,
        settings.evaluation, report, checkpoint,
    )  # fmt: skip
