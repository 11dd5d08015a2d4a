"""One optimiser step by itself, made of what the training loop makes each of its steps of."""

from __future__ import annotations

import torch
from torch import Tensor

from src.core.training import Objective, _accumulate, _descend


def train_step(
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    rows: Tensor,
    micro_batch_size: int = 0,
    clip: float = 0.0,
) -> Tensor:
    """Train on rows ``[B]``; returns the detached mean loss."""
    loss = _accumulate(objective, optimiser, rows, micro_batch_size)
    _descend(optimiser, clip, None, 0)
    return loss
