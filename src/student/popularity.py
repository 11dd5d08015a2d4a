"""The baseline that costs nothing: every history gets the most popular training targets."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Popularity(nn.Module):
    """Scores an item by how often it is a training target; items of equal count are told apart by index."""

    counts: Tensor

    def __init__(self, item_counts: Tensor) -> None:
        super().__init__()
        # ties count against the target; without an order among equals popularity would be judged too low
        order = torch.arange(len(item_counts), dtype=torch.float64, device=item_counts.device)
        self.register_buffer("counts", item_counts.double() - order / (len(item_counts) + 1))

    def forward(self, history: Tensor, length: Tensor) -> Tensor:
        """Scores ``[B, V]``; the history is not read."""
        return self.counts.expand(len(history), -1)
