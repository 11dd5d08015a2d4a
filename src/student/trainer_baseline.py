"""Training a student alone: the baseline that distillation must beat, and the teacher's frozen encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from src.core.checkpoints import Checkpoint
from src.core.seed import reproducible, seed_everything, torch_generator
from src.core.training import NO_CHECKPOINT, FitResult, Report, fit, silent
from src.student.datamodule import StudentData
from src.student.evaluator import evaluate_model
from src.student.models import SequenceStudent, build_student
from src.student.objectives import StudentObjective, negative_sampler
from src.student.settings import EvaluationSettings, StudentSettings


@dataclass(frozen=True, eq=False)
class StudentRun:
    """A trained student in its best epoch's state, and how it got there."""

    student: SequenceStudent
    fit: FitResult


def new_student(settings: StudentSettings, data: StudentData, seed: int) -> SequenceStudent:
    """An initialised student; the seed decides its weights and, from then on, its dropout."""
    seed_everything(seed, "student")
    return build_student(settings, data.num_items, data.history_length).to(data.device)


def train_student(
    settings: StudentSettings,
    evaluation: EvaluationSettings,
    data: StudentData,
    seed: int,
    report: Report = silent,
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> StudentRun:
    """Build, fit, keep the best validation epoch; goes on from ``checkpoint`` where it holds a state.

    Raises ``TrainingFailed`` when the loss or the scores are not finite.
    """
    with reproducible(settings.threads):
        student = new_student(settings, data, seed)
        negatives = torch_generator(seed, "negatives", device=data.device)
        draw = negative_sampler(data, settings.negatives, negatives)
        result = fit(
            student,
            StudentObjective(student, data, settings, draw),
            torch.optim.Adam(
                student.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
            ),
            settings.loop,
            len(data.train),
            lambda: evaluate_model(student, data.validation, evaluation),
            torch_generator(seed, "order"),
            report,
            checkpoint=checkpoint,
            streams=(negatives,),
        )
        return StudentRun(student, result)
