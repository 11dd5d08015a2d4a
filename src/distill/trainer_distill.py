"""Training a student with a teacher: the sum of the terms that are switched on, in one objective."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from src.core.checkpoints import Checkpoint
from src.core.data_utils import shuffled_batches
from src.core.graphs import step_of
from src.core.seed import reproducible, seed_everything, torch_generator
from src.core.training import NO_CHECKPOINT, FitResult, Fitting, Report, silent
from src.distill.data_bridge import TeachingRows
from src.distill.parts import TaughtStudent
from src.distill.selection_policy import SelectionContext, SelectionPolicy, build_policy, require_policy_fits
from src.distill.settings import ActiveSettings, DistillSettings, active_terms, taught_student
from src.distill.terms.base import Step
from src.student.base import SequenceStudent
from src.student.datamodule import StudentData
from src.student.evaluator import ScoreRows, evaluate_model, tell_sample
from src.student.objectives import (
    DrawNegatives,
    column_loss,
    left_out_of_answers,
    main_loss,
    negative_sampler,
    resolve_loss,
    sampled_bce,
)
from src.student.sampled_columns import DrawShared
from src.student.settings import EvaluationSettings, NetworkSettings
from src.student.shared_passes import SharedPasses, shared_passes_for
from src.student.trainer_baseline import new_student, optimiser_for, remember_new_items, sampler_and_streams


def build_taught(
    student: SequenceStudent, settings: DistillSettings, teaching: TeachingRows, data: StudentData, seed: int
) -> TaughtStudent:
    """Add the parts that the terms need.

    They draw from a stream of their own, so the student's own weights and dropout are those of the baseline with the
    same seed.

    Args:
        student: as it was initialised.
        settings: which terms are on.
        teaching: what the teacher said.
        data: the training rows.
        seed: the run's.
    """
    device = student.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed_everything(seed, "distill")
        built = {term.name: term.part(student, settings, teaching, data) for term in active_terms(settings)}
    return TaughtStudent(student, {name: part for name, part in built.items() if part is not None}).to(device)


@dataclass
class DistillObjective:
    """The loss of mission "The distillation"; catalogue-wide work is done once a step, not once a candidate."""

    model: TaughtStudent
    data: StudentData
    teaching: TeachingRows
    student_settings: NetworkSettings
    settings: DistillSettings
    policy: SelectionPolicy
    draw: DrawNegatives
    rows_seen: int = 0
    rows_taught: Tensor | float = field(default=0.0)
    #: draws the items that all rows of a step share, for a loss over sampled items
    shared: DrawShared | None = None
    #: how training rows share forward passes; None where each has its own
    shared_passes: SharedPasses | None = None
    #: see `left_out_of_answers`
    left_out: Tensor | None = None
    #: what `loss` adds to
    counted: ClassVar = ("rows_seen", "rows_taught")

    def __post_init__(self) -> None:
        self.terms = active_terms(self.settings)
        self.model.gathered = self.shared is not None

    def loss(self, rows: Tensor) -> Tensor:
        """Mean loss of these training rows (``[B]`` numbers)."""
        step = Step(
            self.model, self.data, self.teaching, self.student_settings, self.settings, self.draw, rows, self._taught,
            self.shared,
            shared_passes=self.shared_passes,
            reads_candidates=any(term.reads_labels for term in self.terms),
            reads_negatives=any(term.reads_negatives for term in self.terms),
            left_out=self.left_out,
        )  # fmt: skip
        loss: Tensor = self.settings.ce_loss_weight * self._main(step)
        for term in self.terms:
            if (part := term.loss(step)) is not None:
                loss = loss + part
        return loss

    def _main(self, step: Step) -> Tensor:
        if step.columns is not None:
            weight = step.answer_log_weight
            return column_loss(step.logits, step.columns, self.student_settings, self.data.num_items, weight)
        bce = self.student_settings.loss == "bce"
        if bce and not self.model.has_output_parts and not any(term.needs_logits for term in self.terms):
            # as the student without a teacher does it: another order of summation would be another student
            return sampled_bce(self.model.student, step.representation, step.target, step.negatives, step.prior_scores)
        negatives = step.negatives if bce else None
        return main_loss(step.logits, step.target, self.student_settings, negatives, step.answer_log_weight)

    def _taught(self, step: Step) -> Tensor:
        labelled = self.teaching.labelled(step.rows)
        context = SelectionContext(
            step.logits.detach(), step.target, *step.ranking, labelled, self.settings.temperature
        )
        taught = (self.policy.select(context) & labelled).to(step.logits.dtype)
        self.rows_seen += len(step.rows)
        self.rows_taught = self.rows_taught + taught.sum()
        return taught

    def taught_share(self) -> float:
        """Share of the rows since the last call that were taught; starts counting anew."""
        share = float(self.rows_taught) / max(self.rows_seen, 1)
        self.rows_seen, self.rows_taught = 0, 0.0
        return share

    def get_state(self) -> Tensor:
        """What `taught_share` has counted so far, ``[2]`` float64: a training may go on from within an epoch. It stays
        on its device: an adaptive step asks each time, and must not wait for a GPU."""
        taught = torch.as_tensor(self.rows_taught).double()
        return torch.stack([torch.full_like(taught, self.rows_seen), taught])

    def set_state(self, state: Tensor) -> None:
        """Count on from there."""
        self.rows_seen, self.rows_taught = int(state[0]), float(state[1])


@dataclass(frozen=True, eq=False)
class DistillRun:
    """A taught student in its best epoch's state, folded, and how it got there."""

    student: SequenceStudent
    fit: FitResult


def taught_validation_scores(model: TaughtStudent, data: StudentData) -> ScoreRows | None:
    """As `src.student.trainer_baseline.validation_scores`, for a student that is being taught."""
    prior, validation = data.prior, data.validation
    if model.student.prior is None or prior is None:
        return None

    def score(rows: Tensor) -> Tensor:
        representation = model.represent(*validation.read(rows, model.student.window))
        return model.logits(representation, prior.of(prior.validation, rows))

    return score


def train_distilled(
    student_settings: NetworkSettings,
    settings: DistillSettings,
    active: ActiveSettings,
    evaluation: EvaluationSettings,
    data: StudentData,
    teaching: TeachingRows,
    seed: int,
    report: Report = silent,
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> DistillRun:
    """Build, fit, keep the best validation epoch, fold. With every term off this is `train_student` to the last bit.

    Args:
        student_settings: the student's.
        settings: the terms'.
        active: which labelled rows are taught.
        evaluation: how a ranking is judged.
        data: training and validation rows.
        teaching: what the teacher said.
        seed: the run's, from which every stream of random numbers is derived.
        report: gets each epoch's metrics.
        checkpoint: where the state is kept; training goes on from the state that it holds.

    Raises:
        TrainingFailed: the loss or the scores are not finite.
        ConfigError: a term needs what these teacher outputs do not hold, or see `resolve_loss` and
            `require_policy_fits`.
    """
    tell_sample(len(data.validation), evaluation)
    with reproducible(student_settings.threads):
        model, fitting = prepare_distilled(
            student_settings, settings, active, evaluation, data, teaching, seed, report, checkpoint
        )
        result = fitting.alone(step_of(fitting, student_settings.graphs))
        return DistillRun(finish_distilled(model, data), result)


def finish_distilled(model: TaughtStudent, data: StudentData) -> SequenceStudent:
    """The student of a fit that has ended: the teacher's parts are folded away."""
    student = model.fold()
    remember_new_items(student, data)
    return student


def prepare_distilled(
    student_settings: NetworkSettings,
    settings: DistillSettings,
    active: ActiveSettings,
    evaluation: EvaluationSettings,
    data: StudentData,
    teaching: TeachingRows,
    seed: int,
    report: Report = silent,
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> tuple[TaughtStudent, Fitting]:
    """The student of `train_distilled`, which is folded in the end, and its fit, which has not begun; raises alike.

    Args:
        student_settings: the student's.
        settings: the terms'.
        active: which labelled rows are taught.
        evaluation: how a ranking is judged.
        data: training and validation rows.
        teaching: what the teacher said.
        seed: the run's.
        report: gets each epoch's metrics.
        checkpoint: where the state is kept.
    """
    taught = taught_student(student_settings, settings)
    if taught.prior != student_settings.prior:
        data = data.with_prior(taught.prior)
    student_settings = resolve_loss(taught, data.num_items)
    require_policy_fits(student_settings, settings, active)
    model = build_taught(new_student(student_settings, data, seed), settings, teaching, data, seed)
    count = student_settings.negatives if student_settings.loss == "bce" else 1
    negatives = torch_generator(seed, "negatives", device=data.device)
    texts = any(term.scores_unseen for term in active_terms(settings))
    left_out = left_out_of_answers(student_settings, data, texts)
    draw = negative_sampler(data, count, negatives, left_out)
    shared, streams = sampler_and_streams(data, student_settings, seed)
    shared_passes = shared_passes_for(student_settings, model.student, data.train)
    objective = DistillObjective(
        model, data, teaching, student_settings, settings, build_policy(active), draw, shared=shared,
        shared_passes=shared_passes, left_out=left_out,
    )  # fmt: skip
    score = taught_validation_scores(model, data)

    def evaluate() -> dict[str, float]:
        found = evaluate_model(model, data.validation, evaluation, score)
        return {**found, "taught_share": objective.taught_share()}

    return model, Fitting(
        model,
        objective,
        optimiser_for(model, student_settings, model.student),
        student_settings.loop,
        len(data.train),
        evaluate,
        torch_generator(seed, "order"),
        report,
        checkpoint=checkpoint,
        streams=(negatives, objective, *streams),
        batches=shuffled_batches if shared_passes is None else shared_passes.batches(),
    )
