"""The student's losses as pure functions: BCE with negatives, CE over the catalogue or a sample, DRO (golden §1).

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


def sampled_ce(logits: Tensor, log_weight: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy whose sum over the catalogue is estimated: log Σ_m e^{x_m + w_m} - x_target, the mean over rows.

    Args:
        logits: of the items that were drawn and of each row's own, ``[B, M]``.
        log_weight: ``[B, M]``, log of how many items of the catalogue a column stands for (logQ correction).
        target: the target's column, ``[B]``; its weight is 1.
    """
    return ((logits + log_weight).logsumexp(dim=1) - logits.gather(1, target.unsqueeze(1)).squeeze(1)).mean()


def gbce_loss(logits: Tensor, log_weight: Tensor, target: Tensor, rate: float, calibration: float) -> Tensor:
    """Generalised BCE (Petrov & Macdonald, RecSys 2023): σ(x)^β in place of σ(x) for the positive, the mean over rows.

    β = 1 - t (1 - r) for the share r of the catalogue that is drawn and the calibration t: with t = 1 the scores that
    minimise it are those of BCE over the whole catalogue.

    Args:
        logits: ``[B, M]``.
        log_weight: as in `sampled_ce`; times r it is 1 for an item that was drawn from all alike.
        target: the target's column, ``[B]``.
        rate: r, in (0, 1].
        calibration: t.
    """
    positive = logits.gather(1, target.unsqueeze(1)).squeeze(1)
    drawn = (log_weight.exp() * rate).scatter(1, target.unsqueeze(1), 0.0)
    beta = 1 - calibration * (1 - rate)
    rows = beta * F.softplus(-positive) + (drawn * F.softplus(logits)).sum(dim=1)
    return (rows / (1 + drawn.sum(dim=1))).mean()


class DroTerms(NamedTuple):
    """What DRO needs of the whole catalogue, computed once for any number of items a row.

    With a_j = p_j x_j² / β: ``scale`` is p / β, ``[V]``, or ``[B, M]`` where the M columns are not the catalogue;
    ``top_item`` ``[B, 1]`` the column of the largest a_j, ``top_weight`` the log of what it stands for where columns
    stand for several items, and ``rest`` ``[B, 1]`` is log Σ_{j ≠ top} e^{a_j}.
    """

    logits: Tensor
    scale: Tensor
    top_item: Tensor
    rest: Tensor
    top_weight: Tensor | None = None


def dro_terms(logits: Tensor, p: Tensor, beta: float, log_weight: Tensor | None = None) -> DroTerms:
    """The catalogue-wide part of DRO (one pass over ``[B, V]``, or over ``[B, M]`` weighted columns).

    Args:
        logits: ``[B, V]``, or of the columns ``[B, M]``.
        p: propensities of these items, ``[V]`` or ``[B, M]``.
        beta: β > 0.
        log_weight: logarithms of how many items each column stands for; None: 1.
    """
    scale = p / beta
    exponent = logits.square() * scale
    if log_weight is not None:
        exponent = exponent + log_weight
    top_item = exponent.detach().argmax(dim=1, keepdim=True)
    rest = exponent.scatter(1, top_item, float("-inf")).logsumexp(dim=1, keepdim=True)
    return DroTerms(logits, scale, top_item, rest, None if log_weight is None else log_weight.gather(1, top_item))


def dro_at(terms: DroTerms, items: Tensor) -> Tensor:
    """g_b(i) = log(Σ_j e^{a_j} − e^{a_i} + e^{p_i (x_i − 1)² / β}) for items ``[B, K]`` → ``[B, K]`` (golden §1c).

    Subtracting e^{a_i} from the sum cancels in float32 where a_i dominates it (an error of 0.3 at a logit of 13). So
    the largest exponent is kept apart: for that item the answer is the sum of the rest; for any other the largest stays
    in the difference, which is then at least e^{a_top}. The published + 1e-24 is below rounding, as every a_j ≥ 0.
    ``items`` are columns that stand for one item each.
    """
    # one gather, because each one costs a catalogue-wide gradient of zeros in the backward pass
    places = torch.cat([items, terms.top_item], dim=1)
    x = terms.logits.gather(1, places)
    scale = terms.scale[places] if terms.scale.dim() == 1 else terms.scale.gather(1, places)
    exponent = x.square() * scale
    own, top = exponent[:, :-1], exponent[:, -1:]
    if terms.top_weight is not None:
        top = top + terms.top_weight
    others = (terms.rest - top).exp() - (own - top).exp()
    without = torch.where(items == terms.top_item, terms.rest, top + others.clamp(min=0).log1p())
    return torch.logaddexp(without, (x[:, :-1] - 1).square() * scale[:, :-1])
