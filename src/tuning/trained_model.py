"""What a trial's training leaves, and what it costs to use it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from src.core.checkpoints import snapshot
from src.core.data_utils import fingerprint
from src.core.training import FitResult
from src.student.base import Recommender


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """What a training left: ``save(folder)`` writes the best epoch's model there."""

    fit: FitResult
    model: nn.Module
    save: Callable[[Path], None]

    def costs(self, names: set[str]) -> dict[str, float]:
        """Those of `space_document.COSTS` that are asked for."""
        found: dict[str, float] = {}
        if "parameters" in names:
            found["parameters"] = float(sum(p.numel() for p in self.model.parameters() if p.requires_grad))
        if "seconds" in names:
            found["seconds"] = self.fit.seconds
        if "latency_ms" in names:
            assert isinstance(self.model, Recommender)
            found["latency_ms"] = latency_ms(self.model)
        return found

    @property
    def weights(self) -> str:
        """Fingerprint of everything that was trained."""
        return fingerprint(*(value.cpu() for _, value in sorted(snapshot(self.model).items())))


@torch.no_grad()
def latency_ms(student: Recommender, repeats: int = 50) -> float:
    """Median milliseconds to score one full history against the whole catalogue."""
    device = student.device
    length = student.history_length
    history = torch.arange(length, device=device).remainder(student.num_items).unsqueeze(0)
    lengths, seconds = torch.tensor([length], device=device), list[float]()
    for _ in range(repeats):
        start = time.perf_counter()
        student(history, lengths)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) * 1000
