"""Asking a trained teacher: which training examples it labels, what it says about them, how it ranks held-out ones."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.core.data_utils import ordered_batches
from src.core.errors import ConfigError, TrainingFailed
from src.core.logging import progress_bar
from src.core.metrics import target_ranks
from src.core.seed import numpy_generator
from src.data.examples import Examples, SequenceData
from src.data.teacher_outputs import TeacherOutputs
from src.student.datamodule import TensorExamples
from src.student.evaluator import mask_seen
from src.teacher.interfaces import Teacher, TeacherForward
from src.teacher.settings import ExportSettings, Select


def choose_rows(examples: Examples, settings: ExportSettings, seed: int) -> NDArray[np.int64]:
    """Row numbers of the examples to label, ascending. A larger budget keeps what a smaller one chose.

    Raises ``ConfigError`` when the budget is larger than the split, or a share of it below one example.
    """
    share = settings.budget <= 1
    count = round(settings.budget * len(examples)) if share else int(settings.budget)
    if not 1 <= count <= len(examples):
        raise ConfigError.one(
            "teacher.export.budget", settings.budget, f"means {count} of {len(examples)} training examples", "change it"
        )
    return select_rows(examples, count, settings.select, numpy_generator(seed, "label_budget"))


def select_rows(examples: Examples, count: int, select: Select, generator: np.random.Generator) -> NDArray[np.int64]:
    """``count`` row numbers, ascending: the first of a random order, or those with the latest targets."""
    if select == "most_recent":
        order = np.argsort(-examples.timestamp, kind="stable")
    else:
        order = generator.permutation(len(examples))
    return np.sort(order[:count]).astype(np.int64)


@torch.inference_mode()
def ask(
    teacher: Teacher,
    examples: TensorExamples,
    batch_size: int,
    keep: Callable[[Tensor, TeacherForward], None],
    description: str = "",
) -> None:
    """Show every example to the teacher in eval mode; ``keep(rows, forward)`` takes what it needs of each batch.

    Rows come in batches of like cost, so that little is computed on padding; ``rows`` are their numbers. A
    ``description`` draws a bar, which must not happen inside of another one. Raises ``TrainingFailed`` when a logit is
    not finite.
    """
    teacher.eval()
    order = teacher.cost(examples.history, examples.length).argsort(stable=True)
    with progress_bar(description, len(examples)) if description else nullcontext() as bar:
        for part in ordered_batches(len(examples), batch_size, order.device):
            rows = order[part]
            forward = teacher(examples.history[rows], examples.length[rows])
            if not torch.isfinite(forward.logits).all():
                raise TrainingFailed("the teacher's logits are not finite; lower teacher.train's learning rates")
            keep(rows, forward)
            if bar is not None:
                bar.advance(bar.task_ids[0], len(rows))


def rank(
    teacher: Teacher, examples: TensorExamples, batch_size: int, mask_history: bool, description: str = ""
) -> Tensor:
    """1-based rank of each example's target in the teacher's full ranking, ``[n]`` int64 on the CPU."""
    ranks = torch.zeros(len(examples), dtype=torch.int64)

    def keep(rows: Tensor, forward: TeacherForward) -> None:
        scores, target = forward.logits, examples.target[rows]
        if mask_history:
            scores = mask_seen(scores, examples.history[rows], target)
        ranks[rows.cpu()] = target_ranks(scores, target).cpu()

    ask(teacher, examples, batch_size, keep, description)
    return ranks


def score_examples(teacher: Teacher, examples: Examples, batch_size: int, mask_history: bool = False) -> Tensor:
    """`rank` for examples as the data room keeps them."""
    columns = TensorExamples.of(examples, teacher.device)
    return rank(teacher, columns, batch_size, mask_history, "teacher: scoring")


def label(teacher: Teacher, data: SequenceData, rows: NDArray[np.int64], settings: ExportSettings) -> TeacherOutputs:
    """The teacher's top-N rankings, distances −log p(item) and embeddings for these rows of the training split.

    Raises ``ConfigError`` when N is larger than the catalogue.
    """
    if settings.top_n > data.num_items:
        raise ConfigError.one(
            "teacher.export.top_n", settings.top_n, f"must not exceed the catalogue's {data.num_items} items"
        )
    examples = data.train.take(rows)
    found: dict[str, NDArray[Any]] = {}

    def keep(batch: Tensor, forward: TeacherForward) -> None:
        top = forward.logits.float().log_softmax(dim=1).topk(settings.top_n, dim=1)
        parts = {"candidates": top.indices, "scores": top.values, "sequence_embedding": forward.sequence_embedding}
        for name, part in parts.items():
            values = part.cpu().numpy()
            if name not in found:
                found[name] = np.zeros((len(examples), values.shape[1]), dtype=values.dtype)
            found[name][batch.cpu().numpy()] = values

    ask(teacher, TensorExamples.of(examples, teacher.device), settings.batch_size, keep, "teacher: labelling")
    return TeacherOutputs(
        example_id=examples.example_id,
        candidates=found["candidates"],
        scores=found["scores"],
        # a probability that rounds to one may give −log p = −0.0 or a little below
        distances=np.maximum(-found["scores"], np.float32(0.0)),
        sequence_embedding=found["sequence_embedding"],
        item_embedding=teacher.embed_items(settings.batch_size).cpu().numpy(),
        manifest={
            "fingerprints": {**data.fingerprints(), **teacher.fingerprints()},
            "select": settings.select,
            "budget": settings.budget,
            "scores": "log-probability over the catalogue",
            "distances": "-log p(item)",
        },
    )
