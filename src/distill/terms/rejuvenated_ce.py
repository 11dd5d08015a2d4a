"""Ranking distillation by a cross-entropy that is taken where it bounds NDCG (RCE-KD: arXiv 2509.20989).

Cross-entropy over a set of items bounds NDCG only if the set holds what the student ranks high. The teacher's top K
fall into those that the student ranks high as well, where that holds, and the rest, to which items are added that the
student ranks high. The two cross-entropies are weighted by how many of the K candidates each covers.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from src.core.settings import STRICT
from src.distill.terms.base import Step, Term


@dataclass(frozen=True, config=STRICT)
class RejuvenatedCESettings:
    """Cross-entropy on the shared part of two rankings, and on the rest with the student's own favourites."""

    rce_weight: Annotated[float, Field(ge=0, description="weight of the rejuvenated cross-entropy; 0: off")] = 0.0
    rce_temperature: Annotated[
        float, Field(gt=0, description="tau: the teacher's weights over its candidates are e^(-d/tau)")
    ] = 1.0
    rce_pool: Annotated[
        int, Field(ge=1, description="how far down the student's ranking counts as high, and is sampled from")
    ] = 50


def rejuvenated_ce(
    logits: Tensor, candidates: Tensor, distances: Tensor, favourites: Tensor, temperature: float
) -> Tensor:
    """The two cross-entropies of each row, ``[B]``.

    Args:
        logits: the student's, ``[B, V]``.
        candidates: the teacher's, ``[B, K]``.
        distances: small where the teacher is sure, ``[B, K]``.
        favourites: items that the student ranks high, ``[B, P]``, or -1 for none; K that the teacher does not list are
            added.
        temperature: τ > 0.
    """
    own = logits.gather(1, candidates)
    shared = (candidates.unsqueeze(2) == favourites.unsqueeze(1)).any(dim=2)
    strange = (favourites >= 0) & ~(favourites.unsqueeze(2) == candidates.unsqueeze(1)).any(dim=2)
    # K of the student's favourites that the teacher does not list, at random
    place = torch.rand(favourites.shape, device=logits.device).masked_fill(~strange, 2.0)
    drawn = place.topk(min(candidates.shape[1], favourites.shape[1]), dim=1, largest=False)
    added = logits.gather(1, favourites.gather(1, drawn.indices).clamp(min=0)).masked_fill(
        drawn.values > 1, float("-inf")
    )
    closeness = -distances / temperature
    together = _cross_entropy(own, closeness, shared, own.masked_fill(~shared, float("-inf")))
    apart = _cross_entropy(own, closeness, ~shared, torch.cat([own.masked_fill(shared, float("-inf")), added], dim=1))
    share = shared.to(logits.dtype).mean(dim=1)
    return share * together + (1 - share) * apart


def _cross_entropy(own: Tensor, closeness: Tensor, part: Tensor, among: Tensor) -> Tensor:
    """-Σ over a part of the candidates of q · log softmax among some items; q ∝ e^closeness over the part, so that a
    part counts in full however small its share of the whole ranking is."""
    weight = closeness.masked_fill(~part, torch.finfo(closeness.dtype).min).softmax(dim=1) * part
    # a row without this part compares with itself, so that nothing infinite reaches its gradient
    empty = ~part.any(dim=1, keepdim=True)
    normaliser = torch.where(empty, torch.zeros_like(among), among).logsumexp(dim=1, keepdim=True)
    return -(weight * (own - normaliser)).sum(dim=1)


class RejuvenatedCE(Term):
    """``rce_weight`` · cross-entropies."""

    name, arm, title = "rejuvenated_ce", "rce", "student + RCE"
    Settings, switches, order = RejuvenatedCESettings, ("rce_weight",), 60
    reads_labels = True

    def loss(self, step: Step) -> Tensor:
        """Summed over taught rows, divided by B."""
        settings, favourites = step.settings, step.ranked_high(step.settings.rce_pool)
        rows = rejuvenated_ce(step.logits, *step.ranking, favourites, settings.rce_temperature)
        weight: float = settings.rce_weight
        return weight * (step.taught * rows).mean()


TERM = RejuvenatedCE()
