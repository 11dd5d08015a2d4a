"""EASE (Steck, WWW 2019): items that predict each other within a user's set, in closed form; the history that is scored
weighs recent items more."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from src.core.settings import STRICT
from src.data.tensor_examples import TensorExamples
from src.student.base import register
from src.student.decayed_history import Decay, DecayedHistory, SquaredPenalty
from src.student.settings import ClosedFormSettings, Window

_OWNERS_AT_ONCE = 1024


@dataclass(frozen=True, config=STRICT)
class EaseSettings(ClosedFormSettings):
    """B = I - P / diag(P) with P = (Xᵀ X + λ I)⁻¹ over the sets X of each user's training items."""

    architecture: Annotated[str, Field(description="EASE, with the history weighted by recency")] = "ease"
    window: Window = 100
    decay: Decay = 0.7
    l2: SquaredPenalty = 1000.0


@register("ease", EaseSettings)
class Ease(DecayedHistory):
    """One row of scores for each item of history; an item does not predict itself."""

    adds_up = True
    settings_to_try = (
        {"decay": 0.7, "l2": 1000.0},
        {"decay": 0.8, "l2": 300.0},
        {"decay": 0.8, "l2": 1000.0},
        {"decay": 0.7, "l2": 300.0},
        {"decay": 0.6, "l2": 3000.0},
        {"decay": 0.8, "l2": 100.0},
        {"decay": 0.9, "l2": 100.0},
    )

    def __init__(self, settings: EaseSettings, num_items: int, window: int) -> None:
        super().__init__(settings, num_items, window, settings.decay)
        self.l2 = settings.l2

    def sums(self, train: TensorExamples, rows: Tensor) -> tuple[Tensor]:
        """As `DecayedHistory.sums`: Xᵀ X."""
        return (self._together(train, rows),)

    def solve(self, sums: tuple[Tensor], train: TensorExamples, rows: Tensor) -> None:
        """As `DecayedHistory.solve`; in float64. An item of no set predicts nothing: it is left out."""
        (gram,) = sums
        met = torch.nonzero(gram.diagonal() > 0.5).squeeze(1)  # counts of users, up to rounding
        part = gram[met][:, met]
        part.diagonal().add_(self.l2)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(part))
        weight = -inverse / inverse.diagonal()
        weight.diagonal().zero_()
        self.weight = torch.zeros_like(gram, dtype=torch.float32)
        self.weight[met.unsqueeze(1), met] = weight.float()

    def _together(self, train: TensorExamples, rows: Tensor) -> Tensor:
        """Xᵀ X: how many users have both items among the histories and targets of these rows, ``[V, V]`` float64."""
        total = self._with_history(train, rows)
        # a target without a history stands alone, unless it opens the history of the same owner's other rows
        empty = rows[train.earlier[rows] == 0]
        known = torch.isin(train.end[empty], (train.end - train.earlier)[rows[train.earlier[rows] > 0]])
        opened = train.items[train.end[empty].clamp(max=max(len(train.items) - 1, 0))] if len(train.items) else empty
        lone = train.target[empty[~(known & (opened == train.target[empty]))]]
        total.diagonal().add_(torch.bincount(lone, minlength=self.num_items).double())
        return total

    def _with_history(self, train: TensorExamples, rows: Tensor) -> Tensor:
        """The part of `_together` that comes from rows whose history is not empty."""
        rows = rows[train.earlier[rows] > 0]
        owners, owner = torch.unique((train.end - train.earlier)[rows], return_inverse=True)
        until = owners.scatter_reduce(0, owner, train.end[rows], "amax")
        total = torch.zeros(self.num_items, self.num_items, dtype=torch.float64, device=train.device)
        for at in torch.arange(len(owners), device=train.device).split(_OWNERS_AT_ONCE) if len(owners) else ():
            sizes = (until - owners)[at]
            mine = torch.repeat_interleave(torch.arange(len(at), device=train.device), sizes)
            begun = torch.repeat_interleave(owners[at] - (sizes.cumsum(0) - sizes), sizes)
            items = train.items[begun + torch.arange(len(mine), device=train.device)].long()
            held = torch.zeros(len(at), self.num_items, device=train.device)
            held[mine, items] = 1.0
            targets = (owner >= at[0]) & (owner <= at[-1])
            held[owner[targets] - at[0], train.target[rows[targets]]] = 1.0
            total += (held.T @ held).double()
        return total
