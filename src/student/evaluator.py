"""Full-catalogue ranking of one target a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from src.core.data_utils import ordered_batches
from src.core.errors import TrainingFailed
from src.core.logging import get_logger
from src.core.metrics import summarise, target_ranks
from src.core.seed import torch_generator
from src.data.tensor_examples import TensorExamples
from src.student.base import ScorePart
from src.student.settings import EvaluationSettings

_log = get_logger(__name__)

#: ``score(history [B, L], length [B]) -> [B, V]``; an attribute ``history_length`` tells the L that it wants to see
Score = Callable[[Tensor, Tensor], Tensor]
#: ``score_rows(rows [B]) -> [B, V]``
ScoreRows = Callable[[Tensor], Tensor]

#: scores that are held at once: 128 MiB of float32
MAX_SCORES = 2**25


def mask_seen(scores: Tensor, history: Tensor, target: Tensor) -> Tensor:
    """Scores ``[B, V]`` with the history's items at −∞; a target that was seen before keeps its score.

    Args:
        scores: of every item.
        history: ``[B, L]``, padded with V.
        target: ``[B]``.
    """
    own = scores.gather(1, target.unsqueeze(1))
    padded = torch.cat([scores, scores.new_zeros(len(scores), 1)], dim=1)
    return padded.scatter(1, history, float("-inf"))[:, :-1].scatter(1, target.unsqueeze(1), own)


def ranking_scores(scores: Tensor, history: Tensor, target: Tensor, mask_history: bool) -> Tensor:
    """Scores ``[B, V]`` as rankings are read off: see `EvaluationSettings.mask_history`."""
    return mask_seen(scores, history, target) if mask_history else scores


def scores_of(score: Score, examples: TensorExamples, rows: Tensor) -> Tensor:
    """A model's scores ``[B, V]`` for some rows, each history as long as the model wants it.

    Args:
        score: the model, as a function of histories and lengths.
        examples: whose histories are read.
        rows: row numbers ``[B]``.
    """
    return score(*examples.read(rows, int(getattr(score, "history_length", 0))))


@dataclass(frozen=True)
class InParts:
    """Scores of the catalogue's V items that can be had a part at a time."""

    score: Callable[[Tensor], ScorePart]
    num_items: int

    @classmethod
    def of(cls, score: Score, examples: TensorExamples) -> InParts | None:
        """A model's; None where it needs all scores at once."""
        if not getattr(score, "in_parts", False):
            return None
        model: Any = score
        width = int(model.history_length)
        return cls(lambda rows: model.score_parts(*examples.read(rows, width)), int(model.num_items))


@torch.no_grad()
def rank_rows(
    score_rows: ScoreRows, examples: TensorExamples, settings: EvaluationSettings, parts: InParts | None = None
) -> Tensor:
    """1-based rank of each example's target, ``[N]`` int64.

    Not many more than `MAX_SCORES` scores are held at once: memory does not grow with the catalogue times the rows.

    Args:
        score_rows: scores of the whole catalogue.
        examples: whose targets are ranked.
        settings: how many rows at most are ranked at once, and whether what was met before is taken out.
        parts: scores of a part of the catalogue, where the model has a way to them that costs no more.

    Raises:
        TrainingFailed: a score is NaN or infinite, which would otherwise pass as a rank.
    """
    count, device = len(examples), examples.device
    finite, ranks = torch.ones((), dtype=torch.bool, device=device), torch.empty_like(examples.target)
    order, size = torch.arange(count, device=device), min(settings.batch_size, max(count, 1))
    num_items = parts.num_items if parts else examples.padding_id
    if size * num_items <= MAX_SCORES:
        parts = None
    elif parts is None:
        size = max(1, MAX_SCORES // num_items)
    else:
        # rows of near targets together: few parts are needed to know the targets' own scores
        order = examples.target.argsort(stable=True)
    for places in ordered_batches(count, size, device):
        rows = order[places]
        history = _once(examples.read_all(rows), examples.target[rows]) if settings.mask_history else None
        if parts is None:
            ranks[rows], sound = _ranks_of_all(score_rows(rows), examples.target[rows], history)
        else:
            width = max(1, MAX_SCORES // size)
            ranks[rows], sound = _ranks_by_parts(parts.score(rows), examples.target[rows], history, num_items, width)
        finite &= sound
    if not finite:
        raise TrainingFailed("the model's scores are not finite; lower the learning rate or the loss weights")
    return ranks


def _ranks_of_all(scores: Tensor, target: Tensor, history: Tensor | None) -> tuple[Tensor, Tensor]:
    """Ranks ``[B]`` from scores ``[B, V]``, and whether these are finite."""
    ranks = target_ranks(scores, target)
    if history is not None:
        ranks = ranks - _met(scores, 0, scores.gather(1, target.unsqueeze(1)), history)
    return ranks, torch.isfinite(scores).all()


def _ranks_by_parts(
    score: ScorePart, target: Tensor, history: Tensor | None, num_items: int, width: int
) -> tuple[Tensor, Tensor]:
    """As `_ranks_of_all`, by parts of ``width`` items."""
    own: Tensor | None = None
    for number in (target // width).unique().tolist():
        part = score(number * width, min((number + 1) * width, num_items))
        own = part.new_zeros(len(target), 1) if own is None else own
        here = torch.nonzero(target // width == number).squeeze(1)
        own[here, 0] = part[here, target[here] - number * width]
    assert own is not None
    ranks, finite = torch.zeros_like(target), torch.ones((), dtype=torch.bool, device=target.device)
    for first in range(0, num_items, width):
        part = score(first, min(first + width, num_items))
        finite &= torch.isfinite(part).all()
        ranks += (part >= own).sum(dim=1)
        if history is not None:
            ranks -= _met(part, first, own, history)
    return ranks, finite


def _met(part: Tensor, first: int, own: Tensor, history: Tensor) -> Tensor:
    """How many items of histories ``[B, L]`` (each once) score at least ``own`` ``[B, 1]`` in a part ``[B, M]`` of the
    catalogue, from item ``first`` on: ``[B]``."""
    place = history - first
    inside = (place >= 0) & (place < part.shape[1])
    return (inside & (part.gather(1, place.clamp(0, part.shape[1] - 1)) >= own)).sum(dim=1)


def _once(history: Tensor, target: Tensor) -> Tensor:
    """Histories ``[B, L]`` in which each item stands once and the target not at all; -1 elsewhere."""
    items = history.sort(dim=1).values
    again = torch.zeros_like(items, dtype=torch.bool)
    again[:, 1:] = items[:, 1:] == items[:, :-1]
    return items.masked_fill(again | (items == target.unsqueeze(1)), -1)


def rank_examples(score: Score, examples: TensorExamples, settings: EvaluationSettings) -> Tensor:
    """As `rank_rows`, for a function of histories."""
    parts = InParts.of(score, examples)
    return rank_rows(lambda rows: scores_of(score, examples, rows), examples, settings, parts)


def evaluate_model(
    model: nn.Module, examples: TensorExamples, settings: EvaluationSettings, score_rows: ScoreRows | None = None
) -> dict[str, float]:
    """Recall, NDCG and HitRatio at each K, in eval mode (the published evaluation left dropout on).

    Args:
        model: what is evaluated.
        examples: a split, or a part of one; of more than ``settings.sample_rows`` a sample is looked at.
        settings: cut-offs and masking.
        score_rows: another way to the model's scores, where something is known about the rows in advance.
    """
    was_training = model.training
    model.eval()
    sampled = sampled_rows(len(examples), settings, examples.device)
    if sampled is not None:
        examples = examples.of_some(sampled)
    if score_rows is None:
        ranks = rank_examples(model, examples, settings)
    else:
        known = score_rows
        ranks = rank_rows(known if sampled is None else lambda rows: known(sampled[rows]), examples, settings)
    model.train(was_training)
    return summarise(ranks, settings.ks)


def tell_sample(count: int, settings: EvaluationSettings) -> None:
    """Say so where training looks at a part of the ``count`` validation rows."""
    if 0 < settings.sample_rows < count:
        _log.info("while it trains, validation is %d of %d rows (evaluation.sample_rows)", settings.sample_rows, count)


def sampled_rows(count: int, settings: EvaluationSettings, device: torch.device) -> Tensor | None:
    """The rows that a training looks at where it does not look at all ``count``, in order: the same in every training,
    so that these can be compared.

    Args:
        count: rows of the split.
        settings: how many of them are looked at.
        device: where the numbers are wanted.
    """
    if settings.sample_rows == 0 or settings.sample_rows >= count:
        return None
    drawn = torch.randperm(count, generator=torch_generator(0, "validation sample"))[: settings.sample_rows]
    return drawn.sort().values.to(device)
