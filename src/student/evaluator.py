"""Full-catalogue ranking of one target a row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from src.core.data_utils import ordered_batches
from src.core.errors import TrainingFailed
from src.core.metrics import summarise, target_ranks
from src.data.tensor_examples import TensorExamples
from src.student.settings import EvaluationSettings

#: ``score(history [B, L], length [B]) -> [B, V]``; an attribute ``history_length`` tells the L that it wants to see
Score = Callable[[Tensor, Tensor], Tensor]
#: ``score_rows(rows [B]) -> [B, V]``
ScoreRows = Callable[[Tensor], Tensor]


def mask_seen(scores: Tensor, history: Tensor, target: Tensor) -> Tensor:
    """Scores ``[B, V]`` with the history's items at −∞; a target that was seen before keeps its score."""
    own = scores.gather(1, target.unsqueeze(1))
    padded = torch.cat([scores, scores.new_zeros(len(scores), 1)], dim=1)
    return padded.scatter(1, history, float("-inf"))[:, :-1].scatter(1, target.unsqueeze(1), own)


def as_judged(scores: Tensor, history: Tensor, target: Tensor, mask_history: bool) -> Tensor:
    """Scores ``[B, V]`` as rankings are read off: see `EvaluationSettings.mask_history`."""
    return mask_seen(scores, history, target) if mask_history else scores


def scores_of(score: Score, examples: TensorExamples, rows: Tensor) -> Tensor:
    """A model's scores ``[B, V]`` for some rows, each history as long as the model wants it."""
    return score(*examples.read(rows, int(getattr(score, "history_length", 0))))


@torch.no_grad()
def rank_rows(score_rows: ScoreRows, examples: TensorExamples, settings: EvaluationSettings) -> Tensor:
    """1-based rank of each example's target, ``[N]`` int64.

    Raises ``TrainingFailed`` when a score is NaN or infinite, which would otherwise pass as a rank.
    """
    ranks, finite = [], torch.ones((), dtype=torch.bool, device=examples.device)
    for rows in ordered_batches(len(examples), settings.batch_size, examples.device):
        target, scores = examples.target[rows], score_rows(rows)
        finite &= torch.isfinite(scores).all()
        if settings.mask_history:
            scores = mask_seen(scores, examples.read_all(rows), target)
        ranks.append(target_ranks(scores, target))
    if not finite:
        raise TrainingFailed("the model's scores are not finite; lower the learning rate or the loss weights")
    return torch.cat(ranks)


def rank_examples(score: Score, examples: TensorExamples, settings: EvaluationSettings) -> Tensor:
    """As `rank_rows`, for a function of histories."""
    return rank_rows(lambda rows: scores_of(score, examples, rows), examples, settings)


def evaluate_model(
    model: nn.Module, examples: TensorExamples, settings: EvaluationSettings, score_rows: ScoreRows | None = None
) -> dict[str, float]:
    """Recall, NDCG and HitRatio at each K, in eval mode (the published evaluation left dropout on).

    Args:
        model: what is evaluated.
        examples: a split, or a part of one.
        settings: cut-offs and masking.
        score_rows: another way to the model's scores, where something is known about the rows in advance.
    """
    was_training = model.training
    model.eval()
    ranks = rank_rows(score_rows or (lambda rows: scores_of(model, examples, rows)), examples, settings)
    model.train(was_training)
    return summarise(ranks, settings.ks)
