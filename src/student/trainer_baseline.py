"""Training a student alone: the baseline that distillation must beat, and the teacher's frozen encoder."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from src.core.checkpoints import Checkpoint
from src.core.data_utils import shuffled_batches
from src.core.errors import ArtefactError, ConfigError
from src.core.graphs import step_of
from src.core.lazy_adam import LazyAdam
from src.core.seed import reproducible, seed_everything, torch_generator
from src.core.training import NO_CHECKPOINT, FitResult, Fitting, Report, silent
from src.student.base import Recommender, SequenceStudent
from src.student.closed_form_cost import fit_cost
from src.student.datamodule import StudentData
from src.student.evaluator import ScoreRows, evaluate_model, tell_sample
from src.student.models import build_closed_form, build_student
from src.student.new_items import constant_maps
from src.student.objectives import (
    SAMPLED,
    StudentObjective,
    left_out_of_answers,
    negative_sampler,
    resolve_loss,
    shared_sampler,
)
from src.student.sampled_columns import DrawShared
from src.student.settings import ClosedFormSettings, EvaluationSettings, NetworkSettings, StudentSettings
from src.student.shared_passes import shared_passes_for


@dataclass(frozen=True, eq=False)
class StudentRun:
    """A trained student in its best epoch's state, and how it got there."""

    student: Recommender
    fit: FitResult


def new_student(settings: NetworkSettings, data: StudentData, seed: int) -> SequenceStudent:
    """An initialised student, with its prior where it has one; the seed decides its weights and, from then on, its
    dropout.

    Args:
        settings: its architecture and what that reads.
        data: the catalogue, and the prior.
        seed: the run's.
    """
    seed_everything(seed, "student")
    student = build_student(settings, data.num_items, data.history_length).to(data.device)
    # auto: none where the catalogue does not allow it
    if settings.prior != "none" and not (settings.prior == "auto" and data.prior is None):
        if data.prior is None:
            raise ArtefactError.one("student.prior", settings.prior, "was not fitted before this training")
        student.add_prior(data.prior.model, data.prior.scale)
    return student


def validation_scores(student: SequenceStudent, data: StudentData) -> ScoreRows | None:
    """A student's scores of validation rows, where what its prior says was computed once; None without a prior."""
    prior, validation = data.prior, data.validation
    if student.prior is None or prior is None:
        return None

    def score(rows: Tensor) -> Tensor:
        representation = student.encode(*validation.read(rows, student.window))
        return student.logits(representation, prior.of(prior.validation, rows))

    return score


def train_student(
    settings: StudentSettings,
    evaluation: EvaluationSettings,
    data: StudentData,
    seed: int,
    report: Report = silent,
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> StudentRun:
    """Build, fit, keep the best validation epoch; goes on from ``checkpoint`` where it holds a state.

    A model in closed form is fitted and evaluated once: an epoch of its own.

    Raises:
        TrainingFailed: the loss or the scores are not finite.
        ConfigError: the student cannot be built for this catalogue, or see `resolve_loss`.
    """
    tell_sample(len(data.validation), evaluation)
    if not isinstance(settings, NetworkSettings):
        return fit_closed_form(settings, evaluation, data, report)
    with reproducible(settings.threads):
        student, fitting = prepare_student(settings, evaluation, data, seed, report, checkpoint)
        result = fitting.alone(step_of(fitting, settings.graphs))
        remember_new_items(student, data)
        return StudentRun(student, result)


def prepare_student(
    settings: NetworkSettings,
    evaluation: EvaluationSettings,
    data: StudentData,
    seed: int,
    report: Report = silent,
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> tuple[SequenceStudent, Fitting]:
    """A network of `train_student` and its fit, which has not begun.

    Args:
        settings: the student's.
        evaluation: how a ranking is judged.
        data: training and validation rows.
        seed: the run's.
        report: gets each epoch's metrics.
        checkpoint: where the state is kept.
    """
    settings = resolve_loss(settings, data.num_items)
    student = new_student(settings, data, seed)
    negatives = torch_generator(seed, "negatives", device=data.device)
    left_out = left_out_of_answers(settings, data)
    draw = negative_sampler(data, settings.negatives, negatives, left_out)
    shared, streams = sampler_and_streams(data, settings, seed)
    score, shared_passes = validation_scores(student, data), shared_passes_for(settings, student, data.train)
    return student, Fitting(
        student,
        StudentObjective(student, data, settings, draw, shared, shared_passes, left_out),
        optimiser_for(student, settings, student),
        settings.loop,
        len(data.train),
        lambda: evaluate_model(student, data.validation, evaluation, score),
        torch_generator(seed, "order"),
        report,
        checkpoint=checkpoint,
        streams=(negatives, *streams),
        batches=shuffled_batches if shared_passes is None else shared_passes.batches(),
    )


def remember_new_items(student: SequenceStudent, data: StudentData) -> None:
    """Let a network hold something of new items, too, where its prior scores them from their texts."""
    if student.prior is not None and student.prior.from_text and not student.from_text:
        width = len(student.prior.from_text["mean"])
        student.from_text = constant_maps(student, data.item_counts, width).tensors()


def sampler_and_streams(
    data: StudentData, settings: NetworkSettings, seed: int
) -> tuple[DrawShared | None, tuple[torch.Generator, ...]]:
    """As `shared_sampler`, for a fit: what draws, and the streams that it draws from."""
    found = shared_sampler(data, settings, seed)
    return (None, ()) if found is None else (found[0], (found[1],))


def optimiser_for(model: torch.nn.Module, settings: NetworkSettings, student: SequenceStudent) -> torch.optim.Optimizer:
    """Adam over the trainable parameters of a model that holds this student; with a sampled loss the tables with a row
    an item are moved lazily.

    Args:
        model: whose parameters are moved.
        settings: learning rate, weight decay, and the loss.
        student: the student in it.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if settings.loss not in SAMPLED:
        return torch.optim.Adam(trained, settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    tables = [table for table in student.sparse_gradients() if table.requires_grad]
    own = {id(table) for table in tables}
    dense = [parameter for parameter in trained if id(parameter) not in own]
    return LazyAdam(dense, tables, settings.learning_rate, settings.weight_decay)


def require_closed_form_fits(settings: StudentSettings, num_items: int) -> None:
    """Raises ``ConfigError`` when the catalogue is larger than a model in closed form is computed for."""
    if isinstance(settings, ClosedFormSettings) and settings.too_large(num_items):
        cost = fit_cost(num_items, num_items)
        rule = f"this catalogue has {num_items} items, for which it needs {cost}"
        raise ConfigError.one("student.max_items", settings.max_items, rule, "raise it, or use student=transformer")


def fit_closed_form(
    settings: StudentSettings, evaluation: EvaluationSettings, data: StudentData, report: Report = silent
) -> StudentRun:
    """Fit a model in closed form on the training rows and evaluate it on validation.

    Raises ``ConfigError`` when the catalogue is too large for it.

    Args:
        settings: its architecture and what that reads.
        evaluation: how a ranking is judged.
        data: training and validation rows.
        report: gets the metrics of its only epoch.
    """
    require_closed_form_fits(settings, data.num_items)
    start = time.perf_counter()
    with reproducible(settings.threads):
        model = build_closed_form(settings, data.num_items, data.history_length).to(data.device)
        model.item_text = data.item_text
        model.fit(data.train, torch.arange(len(data.train), device=data.device))
        metrics = evaluate_model(model.eval(), data.validation, evaluation)
    report(1, metrics)
    seconds = time.perf_counter() - start
    return StudentRun(model, FitResult(1, metrics, [metrics], 1, 0, len(data.train), seconds))
