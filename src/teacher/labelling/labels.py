"""Asking a trained teacher: what it says about training examples, and how it ranks held-out ones.

Which training examples are worth asking about is decided in `src.teacher.labelling.selection`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.core.errors import ConfigError, TrainingFailed
from src.core.logging import progress_bar
from src.core.memory import in_parts
from src.core.metrics import target_ranks
from src.data.examples import Examples, SequenceData
from src.data.teacher_outputs import TeacherOutputs
from src.data.tensor_examples import TensorExamples
from src.student.evaluator import ranking_scores
from src.teacher.interfaces import Teacher, TeacherForward
from src.teacher.labelling.selection import recent_order
from src.teacher.settings import ExportSettings, Select

#: the setting that says how many prompts are asked at once, and what helps where not even one fits
BATCH_SIZE_KEY = "teacher.export.batch_size"
OUT_OF_MEMORY_ADVICE = (
    "set teacher.quantise=4bit, lower teacher.prompt.max_tokens or the beams, or take a smaller model"
)


def select_rows(examples: Examples, count: int, select: Select, generator: np.random.Generator) -> NDArray[np.int64]:
    """Choose row numbers, ascending: the first of a random order, or those with the latest targets.

    Args:
        examples: of which.
        count: how many.
        select: ``random`` or ``most_recent``.
        generator: draws the random order.
    """
    order = recent_order(examples) if select == "most_recent" else generator.permutation(len(examples))
    return np.sort(order[:count]).astype(np.int64)


@torch.inference_mode()
def infer(
    teacher: Teacher,
    examples: TensorExamples,
    batch_size: int,
    keep: Callable[[Tensor, TeacherForward], None],
    description: str = "",
) -> None:
    """Pass every example through the teacher in eval mode.

    Rows come in batches of like cost, so that little is computed on padding. Out of memory halves the batch from
    there on.

    Args:
        teacher: of any objective.
        examples: on the teacher's device.
        batch_size: prompts at once.
        keep: ``keep(rows, forward)`` takes what it needs of each batch; ``rows`` are numbers. It may see rows that
            did not fit twice.
        description: draws a bar, which must not happen inside of another one; empty: none.

    Raises:
        TrainingFailed: a logit is not finite.
        OutOfMemory: not even one prompt fits.
    """
    teacher.eval()
    order = teacher.cost(examples.history, examples.length).argsort(stable=True)
    with progress_bar(description, len(examples)) if description else nullcontext() as bar:

        def show(rows: Tensor) -> None:
            forward = teacher(examples.history[rows], examples.length[rows])
            if not torch.isfinite(forward.logits).all():
                raise TrainingFailed("the teacher's logits are not finite; lower teacher.train's learning rates")
            keep(rows, forward)
            if bar is not None:
                bar.advance(bar.task_ids[0], len(rows))

        in_parts(order, batch_size, show, BATCH_SIZE_KEY, OUT_OF_MEMORY_ADVICE)


def rank(teacher: Teacher, examples: TensorExamples, batch_size: int, mask_history: bool = False) -> Tensor:
    """Rank each example's target in the teacher's full ranking.

    Args:
        teacher: of any objective.
        examples: on the teacher's device.
        batch_size: prompts at once.
        mask_history: whether items of the history leave the ranking.

    Returns:
        ``[n]`` int64 on the CPU, 1-based.
    """
    ranks = torch.zeros(len(examples), dtype=torch.int64)

    def keep(rows: Tensor, forward: TeacherForward) -> None:
        target = examples.target[rows]
        scores = ranking_scores(forward.logits, examples.history[rows], target, mask_history)
        ranks[rows.cpu()] = target_ranks(scores, target).cpu()

    infer(teacher, examples, batch_size, keep)
    return ranks


@dataclass(frozen=True, eq=False)
class Labels:
    """What a teacher says about n training examples; the columns are those of `TeacherOutputs`.

    ``example_id`` ``[n]`` int64; ``candidates`` ``[n, N]`` int64; ``scores`` and ``distances`` ``[n, N]`` float32;
    ``sequence_embedding`` ``[n, D]`` float32.
    """

    example_id: NDArray[np.int64]
    candidates: NDArray[np.int64]
    scores: NDArray[np.float32]
    distances: NDArray[np.float32]
    sequence_embedding: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class CatalogueOutputs:
    """What a teacher says once, whichever rows it labels: ``item_embedding`` ``[V, D']`` float32, and facts for the
    manifest: ``fingerprints`` of model and prompt, and what its ``scores`` and ``distances`` mean.
    """

    item_embedding: NDArray[np.float32]
    facts: Mapping[str, Any]


class Labeller(Protocol):
    """Turns training examples into labels, with whichever objective and way of ranking."""

    def label(self, examples: Examples) -> Labels:
        """The labels of these examples, in their order. A row's label does not depend on which others are asked."""

    def catalogue_outputs(self) -> CatalogueOutputs:
        """Embed all items, and say what scores and distances mean."""


class TopItems(NamedTuple):
    """The best N items of B histories, best first: ``items`` ``[B, N]`` int64, ``scores`` ``[B, N]`` float32."""

    items: Tensor
    scores: Tensor


@dataclass(frozen=True, eq=False)
class CatalogueLabeller:
    """The top N of a teacher with scores over the catalogue; a distance is minus a score.

    ``best(scores [B, V], N)`` gives the items and their scores ≤ 0 as labels tell them; ``facts`` what these mean.
    """

    teacher: Teacher
    settings: ExportSettings
    best: Callable[[Tensor, int], TopItems]
    facts: Mapping[str, Any]

    def __post_init__(self) -> None:
        require_top_n(self.settings, self.teacher.num_items)

    def label(self, examples: Examples) -> Labels:
        """As `Labeller.label`, up to the rounding of a batch of other rows."""
        found: dict[str, NDArray[Any]] = {}

        def keep(batch: Tensor, forward: TeacherForward) -> None:
            top = self.best(forward.logits.float(), self.settings.top_n)
            parts = {"candidates": top.items, "scores": top.scores, "sequence_embedding": forward.sequence_embedding}
            for name, part in parts.items():
                values = part.cpu().numpy()
                if name not in found:
                    found[name] = np.zeros((len(examples), values.shape[1]), dtype=values.dtype)
                found[name][batch.cpu().numpy()] = values

        columns = TensorExamples.of(examples, self.teacher.device)
        infer(self.teacher, columns, self.settings.batch_size, keep, "teacher: labelling")
        # a probability that rounds to one may give −log p = −0.0 or a little below
        distances = np.maximum(-found["scores"], np.float32(0.0))
        return Labels(example_id=examples.example_id, distances=distances, **found)

    def catalogue_outputs(self) -> CatalogueOutputs:
        """Embed all items, and say what scores and distances mean."""
        facts = {"fingerprints": dict(self.teacher.fingerprints()), **self.facts}
        return CatalogueOutputs(self.teacher.embed_items(self.settings.batch_size).cpu().numpy(), facts)


def require_top_n(settings: ExportSettings, num_items: int) -> None:
    """Raises ``ConfigError`` when more items are to be ranked than the catalogue has."""
    if settings.top_n > num_items:
        rule = f"must not exceed the catalogue's {num_items} items"
        raise ConfigError.one("teacher.export.top_n", settings.top_n, rule, "lower it")


def item_head_labeller(teacher: Teacher, settings: ExportSettings) -> CatalogueLabeller:
    """The labeller of a teacher with logits over the catalogue: top N by log-probability, distances −log p(item)."""
    facts = {
        "ranking": "item_head",
        "scores": "log-probability over the catalogue",
        "distances": "-log p(item)",
    }
    return CatalogueLabeller(teacher, settings, likeliest, facts)


def likeliest(logits: Tensor, n: int) -> TopItems:
    """The n most probable items of logits ``[B, V]``, with log-probabilities."""
    top = logits.log_softmax(dim=1).topk(n, dim=1)
    return TopItems(top.indices, top.values)


def teacher_outputs(
    labels: Labels, catalogue: CatalogueOutputs, data: SequenceData, settings: ExportSettings
) -> TeacherOutputs:
    """Put labels and what is said of the catalogue together, as the artefact.

    Args:
        labels: of some training examples.
        catalogue: item embeddings and facts.
        data: whose training examples they are.
        settings: how these were chosen.
    """
    facts = catalogue.facts
    return TeacherOutputs(
        example_id=labels.example_id,
        candidates=labels.candidates,
        scores=labels.scores,
        distances=labels.distances,
        sequence_embedding=labels.sequence_embedding,
        item_embedding=catalogue.item_embedding,
        manifest={
            **facts,
            "fingerprints": {**data.fingerprints(), **facts["fingerprints"]},
            "select": settings.select,
            "budget": settings.budget,
        },
    )
