"""Ridge regression from the decayed history to the next item, in closed form (SLIST: Choi et al., WWW 2021)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from src.core.settings import STRICT
from src.data.tensor_examples import TensorExamples
from src.student.base import register
from src.student.decayed_history import (
    Decay,
    DecayedHistory,
    SquaredPenalty,
    history_times_history,
    history_times_target,
)
from src.student.settings import ClosedFormSettings, Window


@dataclass(frozen=True, config=STRICT)
class LinearSettings(ClosedFormSettings):
    """W = (Σ h hᵀ + λ I)⁻¹ Σ h eᵀ over training rows with history h and target e; scores are hᵀ W."""

    architecture: Annotated[str, Field(description="ridge from the decayed history to the next item")] = "linear"
    window: Window = 100
    decay: Decay = 0.95
    l2: SquaredPenalty = 1000.0


@register("linear", LinearSettings)
class Linear(DecayedHistory):
    """One row of scores for each item of history."""

    candidates = (
        {"decay": 0.95, "l2": 1000.0},
        {"decay": 0.95, "l2": 300.0},
        {"decay": 0.95, "l2": 3000.0},
        {"decay": 0.9, "l2": 1000.0},
        {"decay": 0.9, "l2": 300.0},
        {"decay": 0.97, "l2": 1000.0},
        {"decay": 0.8, "l2": 300.0},
        {"decay": 0.8, "l2": 100.0},
    )

    def __init__(self, settings: LinearSettings, num_items: int, window: int) -> None:
        super().__init__(settings, num_items, window, settings.decay)
        self.l2 = settings.l2

    def fit(self, train: TensorExamples, rows: Tensor) -> None:
        """As `ClosedForm.fit`; the normal equations are solved in float64."""
        gram = history_times_history(train, rows, self.num_items, self.window, self.decay)
        cross = history_times_target(train, rows, self.num_items, self.window, self.decay)
        gram.diagonal().add_(self.l2)
        self.weight = torch.cholesky_solve(cross, torch.linalg.cholesky(gram)).float()
