"""The plain training function of each stage, in the one shape that a trial needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from src.core.checkpoints import Checkpoint
from src.core.training import FitResult, Fitting, Report
from src.distill.settings import taught_student
from src.distill.trainer_distill import finish_distilled, prepare_distilled, train_distilled
from src.pipeline.settings import ExperimentSettings, training_seed
from src.student.artefact import save_student
from src.student.base import Recommender
from src.student.models import require_network
from src.student.settings import StudentSettings
from src.student.trainer_baseline import prepare_student, remember_new_items, train_student
from src.tuning.search_space import Stage
from src.tuning.shared_data import SharedData
from src.tuning.trained_model import TrainedModel


def train_stage(
    stage: Stage,
    settings: ExperimentSettings,
    data: SharedData,
    device: torch.device,
    report: Report,
    checkpoint: Checkpoint,
) -> TrainedModel:
    """Train a stage's model; see `train_student`, `train_distilled` and `train_teacher` for what they raise."""
    match stage:
        case "teacher":
            # transformers and peft are seconds and half a gigabyte: a worker that trains students does without them
            from src.tuning.teacher_trial import train_teacher_trial

            return train_teacher_trial(settings, report, checkpoint)
        case "student":
            run = train_student(
                settings.student, settings.evaluation, data.students, training_seed(settings), report, checkpoint
            )
            return _trained(run.student, run.fit, settings.student, data)
        case "distill":
            taught = data.taught(settings.distill.teachers, settings.distill.candidate_topk)
            distilled = train_distilled(
                require_network(settings.student), settings.distill, settings.active, settings.evaluation,
                data.students, taught, training_seed(settings), report, checkpoint,
            )  # fmt: skip
            own = taught_student(require_network(settings.student), settings.distill)
            return _trained(distilled.student, distilled.fit, own, data)


def prepare_stage(
    stage: Stage, settings: ExperimentSettings, data: SharedData, report: Report, checkpoint: Checkpoint
) -> tuple[Fitting, Callable[[FitResult], TrainedModel]]:
    """A network's fit that has not begun, and what makes a trained student of its result: `train_stage` in two parts,
    between which many are trained together. Draws from torch's stream, and raises, as `train_stage`."""
    network = require_network(settings.student)
    if stage == "student":
        student, fitting = prepare_student(
            network, settings.evaluation, data.students, training_seed(settings), report, checkpoint
        )

        def finish(fit: FitResult) -> TrainedModel:
            remember_new_items(student, data.students)
            return _trained(student, fit, network, data)

        return fitting, finish
    taught = data.taught(settings.distill.teachers, settings.distill.candidate_topk)
    model, fitting = prepare_distilled(
        network, settings.distill, settings.active, settings.evaluation, data.students, taught,
        training_seed(settings), report, checkpoint,
    )  # fmt: skip
    own = taught_student(network, settings.distill)
    return fitting, lambda fit: _trained(finish_distilled(model, data.students), fit, own, data)


def _trained(student: Recommender, fit: FitResult, settings: StudentSettings, data: SharedData) -> TrainedModel:
    def save(folder: Path) -> None:
        extra, source = {"fit": asdict(fit)}, data.text_source
        save_student(folder, student, settings, data.id_map, data.fingerprints, extra, source)

    return TrainedModel(fit, student, save)
