"""Learning curves for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


def write_curves(folder: Path, history: Sequence[Mapping[str, float]]) -> None:
    """One scalar a metric and epoch (epochs count from 1)."""
    with SummaryWriter(str(folder)) as writer:
        for epoch, metrics in enumerate(history, start=1):
            for name, value in metrics.items():
                writer.add_scalar(name, value, epoch)
