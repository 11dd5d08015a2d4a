"""The teacher's training in the shape that a trial needs; apart from the students', who load no language model."""

from __future__ import annotations

from src.core.checkpoints import Checkpoint
from src.core.training import Report
from src.pipeline.cache import StageCache
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages
from src.teacher.factory import save_teacher
from src.teacher.training import train_teacher
from src.tuning.trained import Trained


def train_teacher_trial(settings: ExperimentSettings, report: Report, checkpoint: Checkpoint) -> Trained:
    """The language model and the encoder come from the stage cache, where the driver has put them."""
    stages = Stages(settings, StageCache(settings.runtime.cache))
    run = train_teacher(
        settings.teacher, stages.data, stages.load_encoder(), stages.llm_folder, stages.device, settings.seed,
        settings.evaluation, report, checkpoint,
    )  # fmt: skip
    return Trained(run.fit, run.teacher, lambda folder: save_teacher(folder, run.teacher, stages.data, run.summary()))
