"""What a student minimises without a teacher: BCE or CE, with an optional DRO term."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from src.data.candidates import draw_from_offsets, forbidden_offsets
from src.student.datamodule import StudentData
from src.student.losses import bce_loss, ce_loss, dro_at, dro_terms
from src.student.models import SequenceStudent
from src.student.settings import StudentSettings

#: ``draw(rows [B]) -> negatives [B, n]``
DrawNegatives = Callable[[Tensor], Tensor]


def negative_sampler(data: StudentData, count: int, generator: torch.Generator) -> DrawNegatives:
    """Negatives uniform over the items that are neither in the row's history nor its target."""

    # what a draw needs of a row does not change: it is worked out for all rows at once
    offsets, allowed = forbidden_offsets(data.train.history, data.train.target, data.num_items)

    def draw(rows: Tensor) -> Tensor:
        return draw_from_offsets(offsets[rows], allowed[rows], count, generator)

    return draw


class StudentObjective:
    """main + ``dro_weight`` · DRO over rows of the training split."""

    def __init__(
        self, model: SequenceStudent, data: StudentData, settings: StudentSettings, draw: DrawNegatives
    ) -> None:
        self.model, self.data, self.settings, self.draw = model, data, settings, draw

    def loss(self, rows: Tensor) -> Tensor:
        """Mean loss of these training rows."""
        train, settings = self.data.train, self.settings
        target = train.target[rows]
        representation = self.model.encode(train.history[rows], train.length[rows])
        if settings.loss == "bce" and settings.dro_weight == 0:
            return sampled_bce(self.model, representation, target, self.draw(rows))
        logits = self.model.scorer(representation)
        loss = main_loss(logits, target, settings, self.draw(rows) if settings.loss == "bce" else None)
        if settings.dro_weight > 0:
            terms = dro_terms(logits, self.data.propensity, settings.dro_beta)
            loss = loss + settings.dro_weight * dro_at(terms, target.unsqueeze(1)).mean()
        return loss


def sampled_bce(model: SequenceStudent, representation: Tensor, target: Tensor, negatives: Tensor) -> Tensor:
    """BCE of the target against ``negatives`` ``[B, n]`` without the rest of the catalogue."""
    scores = model.score_items(representation, torch.cat([target.unsqueeze(1), negatives], dim=1))
    return bce_loss(scores[:, 0], scores[:, 1:])


def main_loss(logits: Tensor, target: Tensor, settings: StudentSettings, negatives: Tensor | None) -> Tensor:
    """CE over the catalogue, or BCE of the target against ``negatives`` ``[B, n]`` (which BCE needs)."""
    if settings.loss == "ce" or negatives is None:
        return ce_loss(logits, target)
    return bce_loss(logits.gather(1, target.unsqueeze(1)).squeeze(1), logits.gather(1, negatives))
