"""What came next after the items of the history, weighted by how long ago each item was: a decayed Markov chain."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from src.core.settings import STRICT
from src.data.tensor_examples import TensorExamples
from src.student.base import register
from src.student.decayed_history import Decay, DecayedHistory, history_times_target
from src.student.settings import ClosedFormSettings, Window


@dataclass(frozen=True, config=STRICT)
class TransitionsSettings(ClosedFormSettings):
    """Counts of (earlier item, next item), divided by powers of what both are worth alone."""

    architecture: Annotated[str, Field(description="transition counts, decayed by distance")] = "transitions"
    window: Window = 60
    decay: Decay = 0.75
    count_decay: Annotated[
        float, Field(gt=0, le=1, description="the same, while pairs of earlier and next item are counted")
    ] = 0.85
    normalise: Annotated[
        float, Field(ge=0, le=1, description="power of an earlier item's count by which its row is divided")
    ] = 0.75
    discount: Annotated[
        float, Field(ge=0, le=1, description="power of a next item's own count by which its column is divided")
    ] = 0.25


@register("transitions", TransitionsSettings)
class Transitions(DecayedHistory):
    """One row of decayed counts for each item of history."""

    adds_up = True
    settings: TransitionsSettings
    settings_to_try = (
        {"decay": 0.75, "count_decay": 0.85},
        {"decay": 0.8, "count_decay": 0.9},
        {"decay": 0.7, "count_decay": 0.7},
        {"decay": 0.75, "count_decay": 0.85, "discount": 0.35},
        {"decay": 0.8, "count_decay": 0.75, "normalise": 0.5},
        {"decay": 0.85, "count_decay": 0.85, "normalise": 0.5, "discount": 0.1},
        {"decay": 0.6, "count_decay": 0.85, "normalise": 1.0},
        {"decay": 0.9, "count_decay": 0.9, "normalise": 0.5, "discount": 0.0},
    )

    def __init__(self, settings: TransitionsSettings, num_items: int, window: int) -> None:
        super().__init__(settings, num_items, window, settings.decay)

    def sums(self, train: TensorExamples, rows: Tensor) -> tuple[Tensor, Tensor]:
        """As `DecayedHistory.sums`: decayed counts of pairs, and how often each item came next."""
        counts = history_times_target(train, rows, self.num_items, self.window, self.settings.count_decay)
        return counts, torch.bincount(train.target[rows], minlength=self.num_items).double()

    def solve(self, sums: tuple[Tensor, Tensor], train: TensorExamples, rows: Tensor) -> None:
        """As `DecayedHistory.solve`."""
        chosen, (counts, following) = self.settings, sums
        earlier = counts.sum(dim=1, keepdim=True).clamp(min=1.0)
        following = following + 1.0
        self.weight = (counts / earlier**chosen.normalise / following**chosen.discount).float()
