"""The baseline that costs nothing: every history gets the items that were popular of late."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from src.core.settings import STRICT
from src.data.tensor_examples import TensorExamples
from src.student.base import ClosedForm, register
from src.student.settings import StudentSettings

_DAY = 86_400.0


@dataclass(frozen=True, config=STRICT)
class PopularitySettings(StudentSettings):
    """How often an item was a training target, lately or at all; one number an item, so no catalogue is too large."""

    architecture: Annotated[str, Field(description="the most popular items, the same for everybody")] = "popularity"
    window: Annotated[int, Field(ge=0, le=10_000, description="the history is not read")] = 1
    days: Annotated[
        float, Field(ge=0, description="only targets of so many days before the last training target count; 0: all")
    ] = 0.0


@register("popularity", PopularitySettings)
class Popularity(ClosedForm):
    """Scores an item by how often it is a training target; items of equal count are told apart by index."""

    settings: PopularitySettings
    settings_to_try = ({"days": 0.0}, {"days": 60.0}, {"days": 14.0}, {"days": 365.0})
    counts: Tensor

    def __init__(self, settings: PopularitySettings, num_items: int, window: int) -> None:
        super().__init__(settings, num_items, window)
        self.days = settings.days
        self.register_buffer("counts", torch.zeros(num_items, dtype=torch.float64))

    def fit(self, train: TensorExamples, rows: Tensor) -> None:
        """As `ClosedForm.fit`."""
        target, times = train.target[rows], train.timestamp[rows]
        if self.days > 0 and len(times):
            target = target[times >= times.max() - self.days * _DAY]
        counted = torch.bincount(target, minlength=self.num_items).double()
        # ties count against the target; without an order among equals popularity would be judged too low
        order = torch.arange(self.num_items, dtype=torch.float64, device=target.device)
        self.counts = counted - order / (self.num_items + 1)

    def forward(self, history: Tensor, length: Tensor) -> Tensor:
        """Scores ``[B, V]``; the history is not read."""
        return self.counts.expand(history.shape[0], -1)

    def score_items(self, history: Tensor, length: Tensor, items: Tensor) -> Tensor:
        """As `ClosedForm.score_items`."""
        return self.counts[items]

    def with_items(self, embedding: Tensor) -> Popularity:
        """As `ClosedForm.with_items`: nobody has chosen them, and they come last."""
        grown = Popularity(self.settings, self.num_items + len(embedding), self.window)
        grown.counts = torch.cat([self.counts, self.counts.new_full((len(embedding),), -1.0)])
        return grown
