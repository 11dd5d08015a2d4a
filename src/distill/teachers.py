"""Teachers other than the language model: any scores over the catalogue become teacher outputs; several become one.

A student distilled from itself (two seeds of its own), or from a linear model, is the control of what a language model
adds: it gets the same kind of labels and the same losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import ordered_batches
from src.core.errors import ConfigError
from src.data.teacher_outputs import TeacherOutputs
from src.student.evaluator import MAX_SCORES

#: the language model's name among ``distill.teachers``
LLM = "llm"
#: the language model's embeddings of the titles alone: no teacher is trained, no row is labelled
TITLES = "titles"
#: two seeds of the configured student
SELF = "self"

_BATCH = 2048
_LEAST = 1e-9  # a probability that is listed by no teacher


@torch.no_grad()
def outputs_from_scores(
    score_rows: Callable[[Tensor], Tensor],
    example_id: np.ndarray,
    num_items: int,
    top_n: int,
    manifest: Mapping[str, Any],
) -> TeacherOutputs:
    """The best items of a model for each training row, with distances -log p under the softmax of its scores.

    Args:
        score_rows: scores ``[B, V]`` of some rows.
        example_id: of every row, ``[N]``.
        num_items: V.
        top_n: candidates kept for each row, at most V.
        manifest: what is known about the model; fingerprints of the data among it.

    Returns:
        Outputs without sequence or item embeddings.
    """
    count, width = len(example_id), min(top_n, num_items)
    candidates = np.zeros((count, width), np.int64)
    distances = np.zeros((count, width), np.float32)
    for rows in ordered_batches(count, max(1, min(_BATCH, MAX_SCORES // num_items))):
        best = score_rows(rows).float().log_softmax(dim=1).topk(width, dim=1)
        candidates[rows.numpy()] = best.indices.cpu().numpy()
        # rounding may leave a log probability of +1e-8
        distances[rows.numpy()] = (-best.values).clamp(min=0).cpu().numpy()
    return _without_embeddings(example_id, candidates, distances, num_items, manifest)


def without_labels(item_embedding: np.ndarray, top_n: int, manifest: Mapping[str, Any]) -> TeacherOutputs:
    """Make the outputs of a teacher that labelled no row.

    Args:
        item_embedding: ``[V, W]``.
        top_n: N, the candidates that a label would have.
        manifest: what the outputs say of themselves.
    """
    rows = np.zeros((0, top_n), np.float32)
    return TeacherOutputs(
        np.zeros(0, np.int64), rows.astype(np.int64), rows, rows, np.zeros((0, 0), np.float32), item_embedding, manifest
    )


def combined(outputs: Sequence[TeacherOutputs], num_items: int) -> TeacherOutputs:
    """Several teachers as one, whose distribution is the mean of theirs over the rows that each one labelled.

    Args:
        outputs: at least one; embeddings are taken from the first that has them.
        num_items: V.

    Raises:
        ConfigError: they list different numbers of candidates.
    """
    first = outputs[0]
    if len(outputs) == 1:
        return first
    width = first.candidates.shape[1]
    if any(one.candidates.shape[1] != width for one in outputs):
        listed = [one.candidates.shape[1] for one in outputs]
        raise ConfigError.one(
            "distill.teachers", listed, "must list the same number of candidates", "teacher.export.top_n"
        )
    example_id = np.unique(np.concatenate([one.example_id for one in outputs]))
    candidates = np.zeros((len(example_id), width), np.int64)
    distances = np.zeros((len(example_id), width), np.float32)
    places = [np.searchsorted(example_id, one.example_id) for one in outputs]
    for rows in ordered_batches(len(example_id), _BATCH):
        low, high = int(rows[0]), int(rows[-1]) + 1
        total, votes = torch.zeros(high - low, num_items), torch.zeros(high - low, 1)
        for one, place in zip(outputs, places, strict=True):
            held = np.flatnonzero((place >= low) & (place < high))
            at = torch.from_numpy(place[held] - low)
            p = torch.from_numpy(np.exp(-np.asarray(one.distances[held], np.float32)))
            dense = torch.zeros(len(held), num_items).scatter_(1, torch.from_numpy(np.asarray(one.candidates[held])), p)
            total.index_add_(0, at, dense)
            votes.index_add_(0, at, torch.ones(len(held), 1))
        best = (total / votes).topk(width, dim=1)
        candidates[low:high] = best.indices.numpy()
        distances[low:high] = -best.values.clamp(min=_LEAST, max=1.0).log().numpy()
    embedded = next((one for one in outputs if one.item_embedding.shape[1]), first)
    # the checksums are those of one teacher's folder
    manifest = {name: value for name, value in embedded.manifest.items() if name != "files"}
    made = _without_embeddings(example_id, candidates, distances, num_items, manifest)
    return TeacherOutputs(
        made.example_id, made.candidates, made.scores, made.distances, made.sequence_embedding,
        np.asarray(embedded.item_embedding), made.manifest,
    )  # fmt: skip


def _without_embeddings(
    example_id: np.ndarray, candidates: np.ndarray, distances: np.ndarray, num_items: int, manifest: Mapping[str, Any]
) -> TeacherOutputs:
    nothing = np.zeros((len(example_id), 0), np.float32)
    items = np.zeros((num_items, 0), np.float32)
    return TeacherOutputs(example_id, candidates, -distances, distances, nothing, items, manifest)
