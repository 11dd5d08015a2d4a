"""Soft labels over the catalogue: KL(teacher ‖ student) at a temperature (Hinton et al., 2015).

A teacher lists its best candidates with distances d = -log p; what it left out is one more outcome, over which it
spreads the rest of its probability evenly. The student's softmax runs over the whole catalogue.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from src.core.settings import STRICT
from src.distill.terms.base import Step, Term

_TINY = 1e-6  # the least probability of what was left out


@dataclass(frozen=True, config=STRICT)
class SoftLabelSettings:
    """KL to the teacher's distribution."""

    soft_weight: Annotated[
        float, Field(ge=0, description="weight of the soft labels' KL, times tau squared; 0: off")
    ] = 0.0
    soft_temperature: Annotated[
        float, Field(gt=0, description="tau: both distributions are taken to the power 1/tau before they are compared")
    ] = 1.0


def soft_label_kl(
    logits: Tensor,
    candidates: Tensor,
    distances: Tensor,
    temperature: float,
    log_weight: Tensor | None = None,
    num_items: int = 0,
) -> Tensor:
    """KL(teacher ‖ student) over the listed candidates and "anything else", in nats.

    Args:
        logits: the student's, ``[B, V]``.
        candidates: the teacher's, ``[B, K]``; where K = V nothing is left over.
        distances: -log p of the candidates, ``[B, K]``; where they sum to more than 1 they are normalised.
        temperature: τ > 0.
        log_weight: ``[B, M]`` where the logits are of a sample: the logarithm of how many items a column stands for.
        num_items: V, where the logits are of a sample.

    Returns:
        ``[B]``.
    """
    rest_items = (num_items or logits.shape[1]) - candidates.shape[1]
    total = (-distances).logsumexp(dim=1, keepdim=True)
    if log_weight is None:
        own = (logits / temperature).log_softmax(dim=1).gather(1, candidates)
    else:
        normaliser = (logits / temperature + log_weight).logsumexp(dim=1, keepdim=True)
        own = logits.gather(1, candidates) / temperature - normaliser
    if rest_items == 0:
        teacher = (-distances / temperature).log_softmax(dim=1)
        return (teacher.exp() * (teacher - own)).sum(dim=1)
    listed = -distances - total.clamp(min=0)
    left = (1 - listed.exp().sum(dim=1, keepdim=True)).clamp(min=_TINY) / rest_items
    # log Σ over what was left out of p^(1/τ), every such item having the same p
    rest = left.log() / temperature + torch.log(logits.new_tensor(float(rest_items)))
    teacher = torch.cat([listed / temperature, rest], dim=1).log_softmax(dim=1)
    own_rest = torch.log1p(-own.exp().sum(dim=1, keepdim=True).clamp(max=1 - _TINY))
    student = torch.cat([own, own_rest], dim=1)
    return (teacher.exp() * (teacher - student)).sum(dim=1)


class SoftLabels(Term):
    """``soft_weight`` · τ² · KL."""

    name, arm, title = "soft_labels", "soft", "student + soft labels"
    Settings, switches, order = SoftLabelSettings, ("soft_weight",), 50
    reads_labels = True

    def loss(self, step: Step) -> Tensor:
        """Summed over taught rows, divided by B."""
        settings = step.settings
        candidates, distances = step.ranking
        weight = step.answer_log_weight
        if step.left_out is not None and weight is not None:
            # what the teacher lists is a possible answer, whether training knows it or not
            weight = weight.expand(step.logits.shape).scatter(1, candidates, 0.0)
        kl = soft_label_kl(step.logits, candidates, distances, settings.soft_temperature, weight, step.data.num_items)
        factor: float = settings.soft_weight * settings.soft_temperature**2
        return factor * (step.taught * kl).mean()


TERM = SoftLabels()
