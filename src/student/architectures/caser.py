"""Caser as DLLM2Rec trains it (golden §2)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from src.core.errors import ConfigError
from src.core.settings import STRICT
from src.student.base import SequenceStudent, register
from src.student.settings import NetworkSettings


@dataclass(frozen=True, config=STRICT)
class CaserSettings(NetworkSettings):
    """Convolutions over the padded window."""

    architecture: Annotated[str, Field(description="Caser as DLLM2Rec trains it")] = "caser"
    filter_sizes: Annotated[
        tuple[int, ...], Field(min_length=1, description="heights of the horizontal filters, each ≤ the window")
    ] = (2, 3, 4)
    num_filters: Annotated[int, Field(ge=1, description="horizontal filters of each height")] = 16

    def __post_init__(self) -> None:
        if any(size < 1 for size in self.filter_sizes):
            raise ValueError("filter_sizes must all be at least 1")


@register("caser", CaserSettings)
class Caser(SequenceStudent):
    """Horizontal and vertical convolutions over the padded window (golden §2)."""

    def __init__(self, settings: CaserSettings, num_items: int, window: int) -> None:
        sizes = settings.filter_sizes
        if max(sizes) > window:
            raise ConfigError.one("student.filter_sizes", list(sizes), f"must not exceed the history length {window}")
        super().__init__(settings, num_items, window, settings.num_filters * len(sizes) + settings.width)
        self.horizontal = nn.ModuleList(nn.Conv1d(settings.width, settings.num_filters, size) for size in sizes)
        self.vertical = nn.Linear(window, 1)

    def encode(self, history: Tensor, length: Tensor, extra: Tensor | None = None) -> Tensor:
        """Representation ``[B, F·sizes + D]``; the window includes padded places, as published."""
        real = (history != self.padding_id).unsqueeze(2)
        columns = (self.embed(history, extra) * real).transpose(1, 2)
        windows = [F.relu(convolution(columns)).amax(dim=2) for convolution in self.horizontal]
        vertical = F.relu(self.vertical(columns)).squeeze(2)
        return self.dropout(torch.cat([*windows, vertical], dim=1))
