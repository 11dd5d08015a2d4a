"""What a model recommends to the examples of a split: ranks with and without what was seen, and lists."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.core.data_utils import ordered_batches
from src.core.errors import TrainingFailed
from src.core.metrics import ndcg, target_ranks
from src.data.examples import Examples, SequenceData
from src.data.tensor_examples import TensorExamples
from src.evaluation.coverage import summarise_lists
from src.evaluation.segments import ExampleFacts
from src.student.evaluator import Score, mask_seen, scores_of
from src.student.settings import EvaluationSettings

#: below this share of repeated targets a recommender would leave out what was seen
RARELY_REPEATED = 0.05


@dataclass(frozen=True, eq=False)
class SplitEvaluation:
    """Ranks and lists of N examples.

    ``ranks`` and ``masked_ranks`` ``[N]`` are 1-based, the latter with everything seen before left out; ``lists``
    ``[N, K]`` are the items recommended.
    """

    ranks: Tensor
    masked_ranks: Tensor
    lists: NDArray[np.int64]

    def official(self, settings: EvaluationSettings) -> Tensor:
        """The ranks that the settings ask for."""
        return self.masked_ranks if settings.mask_history else self.ranks

    def more(self, settings: EvaluationSettings, training_count: NDArray[np.int64]) -> dict[str, float]:
        """NDCG at the largest K the other way about, and what the lists hold."""
        k = max(settings.ks)
        name, other = ("unmasked", self.ranks) if settings.mask_history else ("masked", self.masked_ranks)
        return {f"{name}_ndcg_{k}": float(ndcg(other, k).mean()), **summarise_lists(self.lists, training_count)}


@torch.no_grad()
def evaluate_split(
    score: Score, examples: TensorExamples, settings: EvaluationSettings, repeated: float
) -> SplitEvaluation:
    """Rank every example's target and list what is recommended.

    Args:
        score: the model.
        examples: a split, or a part of one.
        settings: cut-offs and batch size.
        repeated: share of targets that their user had met before (`repeated_share`); where it is small the lists hold
            nothing that was seen.

    Raises:
        TrainingFailed: a score is NaN or infinite, which would otherwise pass as a rank.
    """
    ranks, masked, lists = [], [], []
    finite = torch.ones((), dtype=torch.bool, device=examples.device)
    for rows in ordered_batches(len(examples), settings.batch_size, examples.device):
        target, scores = examples.target[rows], scores_of(score, examples, rows)
        finite &= torch.isfinite(scores).all()
        unseen = mask_seen(scores, examples.read_all(rows), target)
        ranks.append(target_ranks(scores, target))
        masked.append(target_ranks(unseen, target))
        shown = unseen if repeated < RARELY_REPEATED else scores
        lists.append(shown.topk(min(max(settings.ks), shown.shape[1]), dim=1).indices)
    if not finite:
        raise TrainingFailed("the model's scores are not finite; lower the learning rate or the loss weights")
    return SplitEvaluation(torch.cat(ranks), torch.cat(masked), torch.cat(lists).cpu().numpy())


def repeated_share(examples: Examples) -> float:
    """Share of the examples whose target their user had met before."""
    if len(examples) == 0:
        return 0.0
    tensors, found = TensorExamples.of(examples, "cpu"), 0
    for rows in ordered_batches(len(examples), 4096):
        found += int((tensors.read_all(rows) == tensors.target[rows].unsqueeze(1)).any(dim=1).sum())
    return found / len(examples)


def facts_of(examples: Examples, data: SequenceData) -> ExampleFacts:
    """What is known about examples before a model ranks them."""
    return ExampleFacts(
        target_count=data.item_counts[examples.target],
        history_length=examples.past.earlier,
        user=examples.user,
        user_in_training=np.isin(examples.user, data.train.user),
    )
