"""The student's losses as pure functions: BCE with negatives, full-catalogue CE, DRO (DLLM2Rec, golden §1).

Shapes: x ``[B, V]`` logits, t ``[B]`` targets, p ``[V]`` propensities. No function branches on a tensor's value.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def propensity(item_counts: Tensor) -> Tensor:
    """p_i = ((count_i + 1) / Σ_j (count_j + 1))^0.05, ``[V]`` float64, from training-target counts (golden §1a)."""
    smoothed = item_counts.double() + 1.0
    return (smoothed / smoothed.sum()) ** 0.05


def bce_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Mean over the stacked logits of one positive ``[B]`` and n negatives ``[B, n]`` a row (golden §1b at n = 1).

    Each side is a mean, so that more negatives do not outweigh the positive.
    """
    return (F.softplus(-positive).mean() + F.softplus(negative).mean()) / 2


def ce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over the whole catalogue."""
    return F.cross_entropy(logits, target)


class DroTerms(NamedTuple):
    """What DRO needs of the whole catalogue, computed once for any number of items a row.

    With a_j = p_j x_j² / β: ``scale`` ``[V]`` is p / β, ``top_item`` ``[B, 1]`` the index of the largest a_j, and
    ``rest`` ``[B, 1]`` is log Σ_{j ≠ top} e^{a_j}.
    """

    logits: Tensor
    scale: Tensor
    top_item: Tensor
    rest: Tensor


def dro_terms(logits: Tensor, p: Tensor, beta: float) -> DroTerms:
    """The catalogue-wide part of DRO (one pass over ``[B, V]``)."""
    scale = p / beta
    exponent = logits.square() * scale
    top_item = exponent.detach().argmax(dim=1, keepdim=True)
    rest = exponent.scatter(1, top_item, float("-inf")).logsumexp(dim=1, keepdim=True)
    return DroTerms(logits, scale, top_item, rest)


def dro_at(terms: DroTerms, items: Tensor) -> Tensor:
    """g_b(i) = log(Σ_j e^{a_j} − e^{a_i} + e^{p_i (x_i − 1)² / β}) for items ``[B, K]`` → ``[B, K]`` (golden §1c).

    Subtracting e^{a_i} from the sum cancels in float32 where a_i dominates it (an error of 0.3 at a logit of 13). So
    the largest exponent is kept apart: for that item the answer is the sum of the rest; for any other the largest stays
    in the difference, which is then at least e^{a_top}. The published + 1e-24 is below rounding, as every a_j ≥ 0.
    """
    # one gather, because each one costs a catalogue-wide gradient of zeros in the backward pass
    places = torch.cat([items, terms.top_item], dim=1)
    x, scale = terms.logits.gather(1, places), terms.scale[places]
    exponent = x.square() * scale
    own, top = exponent[:, :-1], exponent[:, -1:]
    others = (terms.rest - top).exp() - (own - top).exp()
    without = torch.where(items == terms.top_item, terms.rest, top + others.clamp(min=0).log1p())
    return torch.logaddexp(without, (x[:, :-1] - 1).square() * scale[:, :-1])
