"""Ranking metrics as pure functions of the target's rank (full-catalogue ranking, one target a row)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # settings name metrics before torch is imported
    from torch import Tensor


def target_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """1-based rank of each target among all items: ``[B, V]`` scores, ``[B]`` targets → ``[B]`` int64.

    A tie counts against the target, so that a model which gives every item the same score earns nothing. A score that
    is not finite would hide behind false comparisons: callers refuse it first (`src.student.evaluator`).
    """
    own = scores.gather(1, targets.unsqueeze(1))
    return (scores >= own).sum(dim=1)


def hit_ratio(ranks: Tensor, k: int) -> Tensor:
    """Per-row hit, 1[rank ≤ k], as float64 (DLLM2Rec's HR@k)."""
    return (ranks <= k).double()


def recall(ranks: Tensor, k: int) -> Tensor:
    """Per-row recall: relevant items found over relevant items. With one target a row it equals the hit ratio."""
    relevant = 1
    return hit_ratio(ranks, k) / relevant


def ndcg(ranks: Tensor, k: int) -> Tensor:
    """Per-row NDCG@k, 1[rank ≤ k] / log2(rank + 1); the ideal DCG of one target is 1."""
    return hit_ratio(ranks, k) / (ranks.double() + 1.0).log2()


_METRICS = {"recall": recall, "ndcg": ndcg, "hit_ratio": hit_ratio}


def metric_names(ks: Sequence[int]) -> tuple[str, ...]:
    """Every reported name: ``ndcg_20`` and so on (no ``@``: TensorBoard's HParams would lose the column)."""
    return tuple(f"{name}_{k}" for k in ks for name in _METRICS)


def summarise(ranks: Tensor, ks: Sequence[int]) -> dict[str, float]:
    """Means over rows of Recall, NDCG and HitRatio at each k; raises ``ValueError`` for no rows."""
    if ranks.numel() == 0:
        raise ValueError("no rows to evaluate")
    return {f"{name}_{k}": float(function(ranks, k).mean()) for k in ks for name, function in _METRICS.items()}
