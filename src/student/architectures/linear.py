"""Ridge regression from the decayed history to the next item, in closed form (SLIST: Choi et al., WWW 2021).

Where the texts of items are known, the weights may be drawn towards similarities of these texts instead of towards
zero: items with few interactions then borrow from their neighbours in text.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from src.core.errors import ConfigError
from src.core.settings import STRICT
from src.data.tensor_examples import TensorExamples
from src.student.base import recent, register
from src.student.decayed_history import (
    Decay,
    DecayedHistory,
    SquaredPenalty,
    history_times_history,
    history_times_target,
    times_matrix,
)
from src.student.low_rank import low_rank_ridge
from src.student.new_items import text_directions
from src.student.ridge import owners_of_items, solve_ridge
from src.student.settings import ClosedFormSettings, Window


@dataclass(frozen=True, config=STRICT)
class LinearSettings(ClosedFormSettings):
    """W = (Σ h hᵀ + λ I)⁻¹ (Σ h eᵀ + λ W₀) over training rows with history h and target e; scores are hᵀ W."""

    architecture: Annotated[str, Field(description="ridge from the decayed history to the next item")] = "linear"
    window: Window = 100
    decay: Decay = 0.95
    l2: SquaredPenalty = 1000.0
    rank: Annotated[
        int,
        Field(
            ge=0,
            le=4096,
            description="of a catalogue above max_items: directions of histories that are kept, in place of a weight "
            "for each pair of items; 0: it is refused",
        ),
    ] = 256
    text_weight: Annotated[
        float,
        Field(
            ge=0,
            description="the weights are drawn towards so much of the similarity of the items' texts (teacher.llm) "
            "instead of towards 0; 0: off, no text is read",
        ),
    ] = 0.0
    text_rarity: Annotated[
        float,
        Field(
            ge=0, le=4, description="the similarity to an item counts 1 / (1 + its training count) to this power; 0: 1"
        ),
    ] = 0.25

    @property
    def reads_text(self) -> bool:
        """As `StudentSettings.reads_text`."""
        return self.text_weight > 0

    def in_directions(self, num_items: int) -> bool:
        """Whether a catalogue is so large that the weights are kept as two factors."""
        return num_items > self.max_items and self.rank > 0 and not self.reads_text

    def too_large(self, num_items: int) -> bool:
        """As `ClosedFormSettings.too_large`."""
        return num_items > self.max_items and not self.in_directions(num_items)


@register("linear", LinearSettings)
class Linear(DecayedHistory):
    """One row of scores for each item of history."""

    settings: LinearSettings
    settings_to_try = (
        {"decay": 0.95, "l2": 1000.0},
        {"decay": 0.95, "l2": 300.0},
        {"decay": 0.95, "l2": 3000.0},
        {"decay": 0.9, "l2": 1000.0},
        {"decay": 0.9, "l2": 300.0},
        {"decay": 0.97, "l2": 1000.0},
        {"decay": 0.8, "l2": 300.0},
        {"decay": 0.8, "l2": 100.0},
    )
    left: Tensor
    right: Tensor

    def __init__(self, settings: LinearSettings, num_items: int, window: int) -> None:
        in_directions = settings.in_directions(num_items)
        super().__init__(settings, num_items, window, settings.decay, whole=not in_directions)
        self.adds_up = not in_directions
        if in_directions:
            rank = min(settings.rank, num_items)
            self.register_buffer("left", torch.zeros(num_items, rank))
            self.register_buffer("right", torch.zeros(rank, num_items))

    def forward(self, history: Tensor, length: Tensor) -> Tensor:
        """Scores ``[B, V]``."""
        if self.adds_up:
            return super().forward(history, length)
        seen = recent(history, length, self.window, self.padding_id)
        return times_matrix(*seen, self.decay, self.left) @ self.right

    def score_items(self, history: Tensor, length: Tensor, items: Tensor) -> Tensor:
        """As `ClosedForm.score_items`."""
        if self.adds_up:
            return super().score_items(history, length, items)
        seen = recent(history, length, self.window, self.padding_id)
        return torch.einsum("br,bnr->bn", times_matrix(*seen, self.decay, self.left), self.right.T[items])

    def fit(self, train: TensorExamples, rows: Tensor) -> None:
        """As `ClosedForm.fit`."""
        if self.adds_up:
            super().fit(train, rows)
            return
        chosen = self.settings
        self.left, self.right = low_rank_ridge(
            train, rows, self.num_items, self.window, chosen.decay, chosen.l2, self.left.shape[1]
        )

    def sums(self, train: TensorExamples, rows: Tensor) -> tuple[Tensor, Tensor]:
        """As `DecayedHistory.sums`: Σ h hᵀ and Σ h eᵀ."""
        seen = (train, rows, self.num_items, self.window, self.decay)
        return history_times_history(*seen), history_times_target(*seen)

    def solve(self, sums: tuple[Tensor, Tensor], train: TensorExamples, rows: Tensor) -> None:
        """As `DecayedHistory.solve`; the normal equations are solved in float64."""
        gram, cross = sums
        owner, l2 = owners_of_items(train, rows, self.num_items), self.settings.l2
        if not self.settings.reads_text:
            self.weight = solve_ridge(gram, cross, l2, owner).float()
            return
        mean, directions = self._directions()
        seen = torch.bincount(train.target[rows], minlength=self.num_items).double()
        strength = self.settings.text_weight * (1 + seen) ** -self.settings.text_rarity
        # W₀: how alike the texts of two items are, by the second one's strength; nothing draws an item to itself
        towards = directions @ (directions * strength.unsqueeze(1)).T
        towards.diagonal().zero_()
        # beside it, what an item that is added later has for its column, but for its own direction
        right = torch.cat([cross.add_(l2 * towards), l2 * self.settings.text_weight * directions], dim=1)
        solved = solve_ridge(gram, right, l2, owner).float()
        self.weight = solved[:, : self.num_items].contiguous()
        self.from_text = {
            "mean": mean.float(),
            "directions": directions.float(),
            "strength": strength.float(),
            "columns": solved[:, self.num_items :].contiguous(),
        }

    def _directions(self) -> tuple[Tensor, Tensor]:
        """The mean ``[W]`` of the texts' embeddings and their `text_directions` ``[V, W]``, in float64."""
        if self.item_text is None:
            rule = "draws the weights towards texts of items, and there are no embeddings of texts here"
            raise ConfigError.one(
                "student.text_weight", self.settings.text_weight, rule, "set it to 0, or name teacher.llm"
            )
        embedding = self.item_text.to(self.weight.device).double()
        mean = embedding.mean(dim=0)
        return mean, text_directions(embedding, mean)

    def text_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """As `Recommender.text_shapes`."""
        each = (self.num_items, width)
        return {"mean": (width,), "directions": each, "strength": (self.num_items,), "columns": each}

    def with_items(self, embedding: Tensor) -> Linear:
        """As `ClosedForm.with_items`: what a fit would give that knew these items, each without an
        interaction, around the mean of the texts that it was fitted with."""
        count = self.num_items + len(embedding)
        # it stays what it is, however large the catalogue becomes
        chosen = (
            self.settings if not self.adds_up else replace(self.settings, max_items=max(self.settings.max_items, count))
        )
        grown = Linear(chosen, count, self.window)
        if not self.adds_up:
            grown.left = F.pad(self.left, (0, 0, 0, len(embedding)))
            grown.right = F.pad(self.right, (0, len(embedding)))
            return grown
        grown.weight[: self.num_items, : self.num_items] = self.weight
        if self.from_text:
            known, strength = self.from_text["directions"], self.from_text["strength"]
            new = text_directions(embedding.double(), self.from_text["mean"].double()).float()
            # nothing was learned against what the texts say of an item without interactions
            own = torch.full((len(new),), self.settings.text_weight)
            drawn = new @ (torch.cat([known, new]) * torch.cat([strength, own]).unsqueeze(1)).T
            drawn[:, self.num_items :].diagonal().zero_()
            grown.weight[self.num_items :] = drawn
            grown.weight[: self.num_items, self.num_items :] = self.from_text["columns"] @ new.T
            grown.from_text = {
                "mean": self.from_text["mean"],
                "directions": torch.cat([known, new]),
                "strength": torch.cat([strength, own]),
                "columns": torch.cat([self.from_text["columns"], self.settings.text_weight * new]),
            }
        return grown
