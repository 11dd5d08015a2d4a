"""What a student minimises without a teacher: BCE or CE, with an optional DRO term."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from src.data.candidates import draw_negatives
from src.student.base import SequenceStudent
from src.student.datamodule import StudentData
from src.student.losses import bce_loss, ce_loss, dro_at, dro_terms
from src.student.settings import NetworkSettings

#: ``draw(rows [B]) -> negatives [B, n]``
DrawNegatives = Callable[[Tensor], Tensor]


def negative_sampler(data: StudentData, count: int, generator: torch.Generator) -> DrawNegatives:
    """Negatives uniform over the items that are neither in the row's window of history nor its target."""

    def draw(rows: Tensor) -> Tensor:
        history, _ = data.train.read(rows)
        return draw_negatives(history, data.train.target[rows], data.num_items, count, generator)

    return draw


def train_prior_scores(student: SequenceStudent, data: StudentData, rows: Tensor) -> Tensor | None:
    """What the prior says about training rows, out of fold, ``[B, V]``; None for a student without a prior."""
    return None if student.prior is None or data.prior is None else data.prior.of(data.prior.train, rows)


class StudentObjective:
    """main + ``dro_weight`` · DRO over rows of the training split."""

    def __init__(
        self, model: SequenceStudent, data: StudentData, settings: NetworkSettings, draw: DrawNegatives
    ) -> None:
        self.model, self.data, self.settings, self.draw = model, data, settings, draw

    def loss(self, rows: Tensor) -> Tensor:
        """Mean loss of these training rows."""
        train, settings = self.data.train, self.settings
        target = train.target[rows]
        representation = self.model.encode(*train.read(rows, self.model.window))
        prior = train_prior_scores(self.model, self.data, rows)
        if settings.loss == "bce" and settings.dro_weight == 0:
            return sampled_bce(self.model, representation, target, self.draw(rows), prior)
        logits = self.model.logits(representation, prior)
        loss = main_loss(logits, target, settings, self.draw(rows) if settings.loss == "bce" else None)
        if settings.dro_weight > 0:
            terms = dro_terms(logits, self.data.propensity, settings.dro_beta)
            loss = loss + settings.dro_weight * dro_at(terms, target.unsqueeze(1)).mean()
        return loss


def sampled_bce(
    model: SequenceStudent, representation: Tensor, target: Tensor, negatives: Tensor, prior: Tensor | None = None
) -> Tensor:
    """BCE of the target against ``negatives`` ``[B, n]`` without the rest of the catalogue."""
    scores = model.score_items(representation, torch.cat([target.unsqueeze(1), negatives], dim=1), prior)
    return bce_loss(scores[:, 0], scores[:, 1:])


def main_loss(logits: Tensor, target: Tensor, settings: NetworkSettings, negatives: Tensor | None) -> Tensor:
    """CE over the catalogue, or BCE of the target against ``negatives`` ``[B, n]`` (which BCE needs)."""
    if settings.loss == "ce" or negatives is None:
        return ce_loss(logits, target)
    return bce_loss(logits.gather(1, target.unsqueeze(1)).squeeze(1), logits.gather(1, negatives))
