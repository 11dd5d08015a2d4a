"""Full-catalogue ranking of one target a row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from src.core.data_utils import ordered_batches
from src.core.errors import TrainingFailed
from src.core.metrics import summarise, target_ranks
from src.student.datamodule import TensorExamples
from src.student.settings import EvaluationSettings

#: ``score(history [B, L], length [B]) -> [B, V]``
Score = Callable[[Tensor, Tensor], Tensor]


def mask_seen(scores: Tensor, history: Tensor, target: Tensor) -> Tensor:
    """Scores ``[B, V]`` with the history's items at −∞; a target that was seen before keeps its score."""
    own = scores.gather(1, target.unsqueeze(1))
    padded = torch.cat([scores, scores.new_zeros(len(scores), 1)], dim=1)
    return padded.scatter(1, history, float("-inf"))[:, :-1].scatter(1, target.unsqueeze(1), own)


def as_judged(scores: Tensor, history: Tensor, target: Tensor, mask_history: bool) -> Tensor:
    """Scores ``[B, V]`` as rankings are read off: see `EvaluationSettings.mask_history`."""
    return mask_seen(scores, history, target) if mask_history else scores


@torch.no_grad()
def rank_examples(score: Score, examples: TensorExamples, settings: EvaluationSettings) -> Tensor:
    """1-based rank of each example's target, ``[N]`` int64.

    Raises ``TrainingFailed`` when a score is NaN or infinite, which would otherwise pass as a rank.
    """
    ranks, finite = [], torch.ones((), dtype=torch.bool, device=examples.target.device)
    for rows in ordered_batches(len(examples), settings.batch_size, examples.target.device):
        history, target = examples.history[rows], examples.target[rows]
        scores = score(history, examples.length[rows])
        finite &= torch.isfinite(scores).all()
        ranks.append(target_ranks(as_judged(scores, history, target, settings.mask_history), target))
    if not finite:
        raise TrainingFailed("the model's scores are not finite; lower the learning rate or the loss weights")
    return torch.cat(ranks)


def evaluate_model(model: nn.Module, examples: TensorExamples, settings: EvaluationSettings) -> dict[str, float]:
    """Recall, NDCG and HitRatio at each K, in eval mode (the published evaluation left dropout on)."""
    was_training = model.training
    model.eval()
    ranks = rank_examples(model, examples, settings)
    model.train(was_training)
    return summarise(ranks, settings.ks)
