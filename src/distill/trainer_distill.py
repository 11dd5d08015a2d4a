"""Training a student with a teacher: DLLM2Rec's whole loss in one objective."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from src.core.checkpoints import Checkpoint
from src.core.errors import ConfigError
from src.core.seed import reproducible, seed_everything, torch_generator
from src.core.training import NO_CHECKPOINT, FitResult, Report, fit, silent
from src.distill.data_bridge import TeachingRows
from src.distill.kd_losses import (
    confidence_weights,
    consistency_weights,
    embedding_loss,
    importance_weights,
    position_weights,
    ranking_bce,
    weighted_bce,
    weighted_dro,
)
from src.distill.selection_policy import SelectionContext, SelectionPolicy, build_policy
from src.distill.settings import ActiveSettings, DistillSettings
from src.student.datamodule import StudentData
from src.student.evaluator import evaluate_model
from src.student.losses import DroTerms, dro_at, dro_terms
from src.student.models import SequenceStudent, TeacherItemInput
from src.student.objectives import DrawNegatives, main_loss, negative_sampler, sampled_bce
from src.student.settings import EvaluationSettings, StudentSettings
from src.student.trainer_baseline import new_student


class DistilledStudent(nn.Module):
    """A student with the parts that exist only while it is taught: item input and output projection."""

    def __init__(
        self, student: SequenceStudent, item_input: TeacherItemInput | None, output_projection: nn.Linear | None
    ) -> None:
        super().__init__()
        self.student, self.item_input, self.output_projection = student, item_input, output_projection

    def represent(self, history: Tensor, length: Tensor) -> Tensor:
        """``[B, R]``, with the teacher's item embeddings where they take part."""
        extra = None if self.item_input is None else self.item_input(history)
        return self.student.encode(history, length, extra)

    def forward(self, history: Tensor, length: Tensor) -> Tensor:
        """Logits ``[B, V]``."""
        logits: Tensor = self.student.scorer(self.represent(history, length))
        return logits

    def fold(self) -> SequenceStudent:
        """The student alone, with the projected item embeddings in its own table; gives the same logits."""
        if self.item_input is not None:
            self.item_input.fold_into(self.student)
            self.item_input = None
        return self.student


def build_distilled(
    student: SequenceStudent, settings: DistillSettings, teaching: TeachingRows, seed: int
) -> DistilledStudent:
    """Add the parts that these settings need. They draw from a stream of their own, so the student's own weights and
    dropout are those of the baseline with the same seed."""
    device = student.item_embeddings.weight.device
    width = student.item_embeddings.embedding_dim
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed_everything(seed, "distill")
        item_input = output_projection = None
        if settings.ed_weight > 0:
            item_input = TeacherItemInput(teaching.item_embedding, student.num_items, width, settings.ed_weight)
        if settings.embedding_loss_weight > 0:
            if teaching.sequence_embedding.shape[1] == 0:
                raise ConfigError.one(
                    "distill.embedding_loss_weight",
                    settings.embedding_loss_weight,
                    "these teacher outputs hold no sequence embeddings",
                    "set it to 0, or use outputs that run_teacher made",
                )
            output_projection = nn.Linear(student.representation, teaching.sequence_embedding.shape[1])
        return DistilledStudent(student, item_input, output_projection).to(device)


@dataclass
class DistillObjective:
    """The loss of mission "The distillation"; catalogue-wide work is done once a step, not once a candidate."""

    model: DistilledStudent
    data: StudentData
    teaching: TeachingRows
    student_settings: StudentSettings
    settings: DistillSettings
    policy: SelectionPolicy
    draw: DrawNegatives
    rows_seen: int = 0
    rows_taught: Tensor | float = field(default=0.0)

    def loss(self, rows: Tensor) -> Tensor:
        """Mean loss of these training rows (``[B]`` numbers)."""
        train, settings = self.data.train, self.settings
        target, negatives = train.target[rows], self.draw(rows)
        representation = self.model.represent(train.history[rows], train.length[rows])
        if self._reads_sampled_items_only:
            # as the student without a teacher does it: another order of summation would be another student
            return settings.ce_loss_weight * sampled_bce(self.model.student, representation, target, negatives)
        logits = self.model.student.scorer(representation)
        loss = settings.ce_loss_weight * main_loss(logits, target, self.student_settings, negatives)
        terms = dro_terms(logits, self.data.propensity, settings.beta) if settings.alpha > 0 else None
        if terms is not None:
            loss = loss + settings.alpha * dro_at(terms, target.unsqueeze(1)).mean()
        if not (settings.needs_ranking or settings.embedding_loss_weight > 0):
            return loss
        taught = self._taught(rows, logits.detach(), target)
        if settings.needs_ranking:
            ranking = self._ranking(rows, logits, terms, negatives[:, 0], taught)
            loss = loss + settings.lam * settings.ranking_loss_weight * ranking
        if self.model.output_projection is not None:
            loss = loss + settings.embedding_loss_weight * self._embedding(rows, representation, taught)
        return loss

    @property
    def _reads_sampled_items_only(self) -> bool:
        """Whether no term looks at the whole catalogue."""
        settings = self.settings
        wide = settings.alpha > 0 or settings.needs_ranking or settings.embedding_loss_weight > 0
        return self.student_settings.loss == "bce" and not wide

    def _taught(self, rows: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        """``[B]`` 1.0 where a row is labelled and selected."""
        labelled = self.teaching.labelled(rows)
        candidates, distances = self.teaching.ranking(rows)
        context = SelectionContext(logits, target, candidates, distances, labelled, self.settings.temperature)
        taught = (self.policy.select(context) & labelled).to(logits.dtype)
        self.rows_seen += len(rows)
        self.rows_taught = self.rows_taught + taught.sum()
        return taught

    def _ranking(
        self, rows: Tensor, logits: Tensor, terms: DroTerms | None, negative: Tensor, taught: Tensor
    ) -> Tensor:
        """Importance-aware ranking distillation, summed over the K candidates."""
        candidates, distances = self.teaching.ranking(rows)
        weights = ranking_weights(logits.detach(), candidates, distances, self.settings)
        negative_logit = logits.gather(1, negative.unsqueeze(1)).squeeze(1)
        bce = ranking_bce(logits.gather(1, candidates), negative_logit, self.settings.ranking_negative)
        total = weighted_bce(weights, bce, taught)
        if terms is not None:
            dro = weighted_dro(weights, dro_at(terms, candidates), taught, self.settings.dro_weighting)
            total = total + self.settings.alpha * dro
        return total.sum()

    def _embedding(self, rows: Tensor, representation: Tensor, taught: Tensor) -> Tensor:
        assert self.model.output_projection is not None
        projected = self.model.output_projection(representation)
        return embedding_loss(projected, self.teaching.embedding(rows), taught, self.settings.embedding_loss)

    def taught_share(self) -> float:
        """Share of the rows since the last call that were taught; starts counting anew."""
        share = float(self.rows_taught) / max(self.rows_seen, 1)
        self.rows_seen, self.rows_taught = 0, 0.0
        return share

    def get_state(self) -> Tensor:
        """What `taught_share` has counted so far, ``[2]`` float64: a training may go on from within an epoch."""
        return torch.tensor([float(self.rows_seen), float(self.rows_taught)], dtype=torch.float64)

    def set_state(self, state: Tensor) -> None:
        """Count on from there."""
        self.rows_seen, self.rows_taught = int(state[0]), float(state[1])


def ranking_weights(logits: Tensor, candidates: Tensor, distances: Tensor, settings: DistillSettings) -> Tensor:
    """Position, confidence and consistency of each candidate, mixed: ``[B, K]``; pass detached logits."""
    return importance_weights(
        position_weights(candidates.shape[1], distances),
        confidence_weights(distances, settings.temperature),
        consistency_weights(candidates, logits),
        (settings.gamma_position, settings.gamma_confidence, settings.gamma_consistency),
    )


@dataclass(frozen=True, eq=False)
class DistillRun:
    """A taught student in its best epoch's state, folded, and how it got there."""

    student: SequenceStudent
    fit: FitResult


def train_distilled(
    student_settings: StudentSettings,
    settings: DistillSettings,
    active: ActiveSettings,
    evaluation: EvaluationSettings,
    data: StudentData,
    teaching: TeachingRows,
    seed: int,
    report: Report = silent,
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> DistillRun:
    """Build, fit, keep the best validation epoch, fold; goes on from ``checkpoint`` where it holds a state.

    With lam = alpha = ed_weight = embedding_loss_weight = 0 this is `train_student` to the last bit.
    Raises ``TrainingFailed`` when the loss or the scores are not finite.
    """
    with reproducible(student_settings.threads):
        model = build_distilled(new_student(student_settings, data, seed), settings, teaching, seed)
        count = student_settings.negatives if student_settings.loss == "bce" else 1
        negatives = torch_generator(seed, "negatives", device=data.device)
        draw = negative_sampler(data, count, negatives)
        objective = DistillObjective(model, data, teaching, student_settings, settings, build_policy(active), draw)
        optimiser = torch.optim.Adam(
            model.parameters(), student_settings.learning_rate, weight_decay=student_settings.weight_decay, fused=True
        )

        def evaluate() -> dict[str, float]:
            return {**evaluate_model(model, data.validation, evaluation), "taught_share": objective.taught_share()}

        order = torch_generator(seed, "order")
        result = fit(
            model,
            objective,
            optimiser,
            student_settings.loop,
            len(data.train),
            evaluate,
            order,
            report,
            checkpoint=checkpoint,
            streams=(negatives, objective),
        )
        return DistillRun(model.fold(), result)
