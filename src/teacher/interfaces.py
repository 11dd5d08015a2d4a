"""What the pipeline, the labelling and the evaluation need of any teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from src.core.training import Objective


def nothing() -> None:
    """Do nothing after a step, as most training plans."""


@dataclass(frozen=True, eq=False)
class TrainingPlan:
    """What the teacher's objectives differ in while it is trained.

    ``cost`` ``[N]`` int64: tokens of each training row. ``evaluate`` gives the validation metrics; ``rate(step)`` is
    the factor of all learning rates at a step (from 0); ``on_step`` is called after every step; ``start_rows`` training
    examples were read before the first.
    """

    objective: Objective
    cost: Tensor
    evaluate: Callable[[], Mapping[str, float]]
    rate: Callable[[int], float]
    on_step: Callable[[], None] = nothing
    start_rows: int = 0


class TeacherForward(NamedTuple):
    """What a teacher says about B histories.

    ``logits`` ``[B, V]`` over the catalogue, higher is better (of a teacher without an item head the scores of
    `src.teacher.title_lm.scoring`); ``sequence_embedding`` ``[B, D]``, the LLM's last hidden state, pooled;
    ``gate_weights`` ``[B, E]``. All float32.
    """

    logits: Tensor
    sequence_embedding: Tensor
    gate_weights: Tensor


class Teacher(Protocol):
    """A trained teacher over a catalogue of V items. Histories are ``[B, L]`` ids, padded on the right with V."""

    @property
    def num_items(self) -> int:
        """Number of items, V."""

    @property
    def device(self) -> torch.device:
        """The device that histories are expected on."""

    def __call__(self, history: Tensor, length: Tensor) -> TeacherForward:
        """The teacher's word on histories ``[B, L]`` of lengths ``[B]``."""

    def cost(self, history: Tensor, length: Tensor) -> Tensor:
        """``[B]`` int64: a measure of each row's work (prompt tokens); rows of like cost make good batches."""

    def embed_items(self, batch_size: int) -> Tensor:
        """``[V, D]`` float32: each item's title through the LLM, adapters off."""

    def fingerprints(self) -> Mapping[str, str]:
        """``model`` and ``prompt``: what identifies its weights and its questions."""

    def eval(self) -> Teacher:
        """Switch dropout and noise off."""
