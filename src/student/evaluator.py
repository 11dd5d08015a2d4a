"""Full-catalogue ranking of one target a row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from src.core.data_utils import ordered_batches
from src.core.errors import TrainingFailed
from src.core.metrics import summarise
from src.core.seed import torch_generator
from src.data.tensor_examples import TensorExamples
from src.student.base import ScorePart
from src.student.settings import EvaluationSettings

#: ``score(history [B, L], length [B]) -> [B, V]``; an attribute ``history_length`` tells the L that it wants to see
Score = Callable[[Tensor, Tensor], Tensor]
#: ``score_rows(rows [B]) -> [B, V]``
ScoreRows = Callable[[Tensor], Tensor]
#: the same for a part of the catalogue at a time
ScorePartRows = Callable[[Tensor], ScorePart]

#: scores that are held at once: 128 MiB of float32
MAX_SCORES = 2**25


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


def parts_of(score: Score, examples: TensorExamples, rows: Tensor) -> ScorePart:
    """A model's scores for some rows, a part of the catalogue at a time."""
    found: ScorePart = score.score_parts(  # type: ignore[attr-defined]
        *examples.read(rows, int(getattr(score, "history_length", 0)))
    )
    return found


@torch.no_grad()
def rank_rows(
    score_rows: ScoreRows, examples: TensorExamples, settings: EvaluationSettings, parts: ScorePartRows | None = None
) -> Tensor:
    """1-based rank of each example's target, ``[N]`` int64.

    Never more than `MAX_SCORES` scores are held at once, so memory does not grow with the catalogue times the rows.

    Args:
        score_rows: scores of the whole catalogue.
        examples: whose targets are ranked.
        settings: how many rows at most are ranked at once, and whether what was met before is taken out.
        parts: scores of a part of the catalogue, where the model has a way to them that costs no more.

    Raises:
        TrainingFailed: a score is NaN or infinite, which would otherwise pass as a rank.
    """
    count, num_items = len(examples), examples.padding_id
    finite = torch.ones((), dtype=torch.bool, device=examples.device)
    ranks = torch.empty(count, dtype=torch.int64, device=examples.device)
    size = min(settings.batch_size, max(count, 1))
    if size * num_items <= MAX_SCORES:
        order, width = torch.arange(count, device=examples.device), num_items
    elif parts is None:
        order, width = torch.arange(count, device=examples.device), num_items
        size = max(1, MAX_SCORES // num_items)
    else:
        # rows of near targets together: few parts are needed to know the targets' own scores
        order, width = examples.target.argsort(stable=True), max(1, MAX_SCORES // size)
    for places in ordered_batches(count, size, examples.device):
        rows = order[places]
        score = _whole(score_rows(rows)) if width >= num_items or parts is None else parts(rows)
        found, sound = _ranks(score, examples, rows, width, settings.mask_history)
        ranks[rows] = found
        finite &= sound
    if not finite:
        raise TrainingFailed("the model's scores are not finite; lower the learning rate or the loss weights")
    return ranks


def _whole(scores: Tensor) -> ScorePart:
    return lambda first, last: scores[:, first:last]


def _ranks(
    score: ScorePart, examples: TensorExamples, rows: Tensor, width: int, mask_history: bool
) -> tuple[Tensor, Tensor]:
    """Ranks ``[B]`` as `target_ranks` counts them, by parts of ``width`` items, and whether all scores are finite."""
    num_items, target = examples.padding_id, examples.target[rows]
    history = _once(examples.read_all(rows), target) if mask_history else None
    firsts = range(0, num_items, width)
    own = torch.empty(len(rows), device=examples.device)
    if len(firsts) > 1:
        for first in (target // width).unique().tolist():
            part = score(first * width, min((first + 1) * width, num_items))
            own = own.to(part.dtype)
            here = torch.nonzero(target // width == first).squeeze(1)
            own[here] = part[here, target[here] - first * width]
    ranks = torch.zeros(len(rows), dtype=torch.int64, device=examples.device)
    finite = torch.ones((), dtype=torch.bool, device=examples.device)
    for first in firsts:
        part = score(first, min(first + width, num_items))
        finite &= torch.isfinite(part).all()
        if len(firsts) == 1:
            own = part.gather(1, target.unsqueeze(1)).squeeze(1)
        ranks += (part >= own.unsqueeze(1)).sum(dim=1)
        if history is not None:
            # an item that was met before does not count, however it scores
            inside = (history >= first) & (history < first + part.shape[1])
            met = part.gather(1, (history - first).clamp(0, part.shape[1] - 1)) >= own.unsqueeze(1)
            ranks -= (inside & met).sum(dim=1)
    return ranks, finite


def _once(history: Tensor, target: Tensor) -> Tensor:
    """Histories ``[B, L]`` in which each item stands once and the target not at all; -1 elsewhere."""
    items = history.sort(dim=1).values
    again = torch.zeros_like(items, dtype=torch.bool)
    again[:, 1:] = items[:, 1:] == items[:, :-1]
    return items.masked_fill(again | (items == target.unsqueeze(1)), -1)


def rank_examples(score: Score, examples: TensorExamples, settings: EvaluationSettings) -> Tensor:
    """As `rank_rows`, for a function of histories."""
    in_parts = getattr(score, "in_parts", False)
    parts: ScorePartRows | None = (lambda rows: parts_of(score, examples, rows)) if in_parts else None
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


def sampled_rows(count: int, settings: EvaluationSettings, device: torch.device) -> Tensor | None:
    """The rows that a training looks at where it does not look at all ``count``, in order: the same in every training,
    so that these can be compared."""
    if settings.sample_rows == 0 or settings.sample_rows >= count:
        return None
    drawn = torch.randperm(count, generator=torch_generator(0, "validation sample"))[: settings.sample_rows]
    return drawn.sort().values.to(device)
