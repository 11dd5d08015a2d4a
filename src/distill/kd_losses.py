"""DLLM2Rec's distillation terms as pure functions (Cui et al., RecSys 2024; golden §1d-e).

Shapes: x ``[B, V]`` student logits, c ``[B, K]`` the teacher's candidates, best first, d ``[B, K]`` distances
(≥ 0, small where the teacher is sure), u ``[B]`` one negative a row, taught ``[B]`` 1.0 where a row is taught, else 0.
No function branches on a tensor's value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: keeps a weight positive where a candidate is far or shared by nobody; as published
FLOOR = 1e-8


def position_weights(count: int, like: Tensor) -> Tensor:
    """e^{-k} / Σ_m e^{-m} for k = 1..K: ``[K]``; a better position weighs more."""
    ranks = torch.arange(1, count + 1, dtype=like.dtype, device=like.device)
    return torch.softmax(-ranks, dim=0)


def confidence_weights(distances: Tensor, temperature: float = 1.0) -> Tensor:
    """(e^{-d/τ} + 1e-8) / Σ_m (e^{-d_m/τ} + 1e-8): ``[B, K]``; the floor makes far candidates uniform."""
    closeness = (-distances / temperature).exp() + FLOOR
    return closeness / closeness.sum(dim=1, keepdim=True)


def consistency_weights(candidates: Tensor, logits: Tensor, favourites: Tensor | None = None) -> Tensor:
    """Weigh candidates that the student ranks high too: 1[c in the student's own top K] + 1e-8, not normalised.

    Args:
        candidates: ``[B, K]``; nothing is taken out of this ranking.
        logits: ``[B, V]`` of the student.
        favourites: ``[B, ≤ K]``, the student's own top K where it is known.

    Returns:
        ``[B, K]``.
    """
    own = logits.topk(candidates.shape[1], dim=1).indices if favourites is None else favourites
    shared = (candidates.unsqueeze(2) == own.unsqueeze(1)).any(dim=2)
    return shared.to(logits.dtype) + FLOOR


def importance_weights(
    position: Tensor, confidence: Tensor, consistency: Tensor, gammas: tuple[float, float, float]
) -> Tensor:
    """Mix three weights and normalise them over the K candidates.

    Args:
        position: ``[K]``, by the place in the teacher's ranking.
        confidence: ``[B, K]``, by the teacher's distances.
        consistency: ``[B, K]``, by the student's own ranking.
        gammas: the share of each.

    Returns:
        ``[B, K]``.
    """
    mixed = gammas[0] * position + gammas[1] * confidence + gammas[2] * consistency
    return mixed / mixed.sum(dim=1, keepdim=True)


def ranking_bce(candidate_logits: Tensor, negative_logit: Tensor, negative_form: str) -> Tensor:
    """Set each candidate against one negative: −log σ(x_c) − log(negative part).

    Args:
        candidate_logits: ``[B, K]``.
        negative_logit: ``[B]``; the same negative stands against every candidate.
        negative_form: ``one_minus_sigmoid``: log(1 − σ(x_u)); ``sigmoid_of_one_minus``: log σ(1 − x_u), as released.

    Returns:
        ``[B, K]``.
    """
    shift = 1.0 if negative_form == "sigmoid_of_one_minus" else 0.0
    return F.softplus(-candidate_logits) + F.softplus(negative_logit.unsqueeze(1) - shift)


def weighted_bce(weights: Tensor, bce: Tensor, taught: Tensor) -> Tensor:
    """Sum W·bce over taught rows, and divide by B.

    Args:
        weights: ``[B, K]``.
        bce: ``[B, K]``.
        taught: ``[B]``, 1.0 where a row is taught.

    Returns:
        ``[K]``.
    """
    return (taught.unsqueeze(1) * weights * bce).mean(dim=0)


def weighted_dro(weights: Tensor, dro: Tensor, taught: Tensor, weighting: str) -> Tensor:
    """Weigh the candidates' DRO terms and divide by B.

    Args:
        weights: W ``[B, K]``.
        dro: g ``[B, K]``.
        taught: ``[B]``, 1.0 where a row is taught.
        weighting: ``per_sample``: mean of W·g. ``product``: mean W times mean g over taught rows, which is what the
            released [B, 1] × [B] product amounts to (golden §1e). With every row taught, the latter is mean(W)·mean(g).

    Returns:
        ``[K]``.
    """
    mask = taught.unsqueeze(1)
    if weighting == "per_sample":
        return (mask * weights * dro).mean(dim=0)
    mean_over_taught = (mask * dro).sum(dim=0) / taught.sum().clamp(min=1)
    return (mask * weights).mean(dim=0) * mean_over_taught


def embedding_loss(student: Tensor, teacher: Tensor, taught: Tensor, kind: str) -> Tensor:
    """Compare sequence embeddings: a distance summed over taught rows, divided by B.

    Args:
        student: ``[B, E]``, projected to the teacher's width.
        teacher: ``[B, E]``.
        taught: ``[B]``, 1.0 where a row is taught.
        kind: ``mse``: mean squared difference over E; ``cosine``: 1 − cos.

    Returns:
        A scalar.
    """
    if kind == "mse":
        rows = (student - teacher).square().mean(dim=1)
    else:
        rows = 1 - F.cosine_similarity(student, teacher, dim=1)
    return (taught * rows).mean()
