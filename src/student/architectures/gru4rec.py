"""GRU4Rec as DLLM2Rec trains it (golden §2)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from src.core.settings import STRICT
from src.student.base import SequenceStudent, register
from src.student.settings import NetworkSettings


@dataclass(frozen=True, config=STRICT)
class GRU4RecSettings(NetworkSettings):
    """One GRU layer as wide as the item embeddings."""

    architecture: Annotated[str, Field(description="GRU4Rec as DLLM2Rec trains it")] = "gru4rec"


@register("gru4rec", GRU4RecSettings)
class GRU4Rec(SequenceStudent):
    """One GRU layer over the first max(1, length) steps; its last hidden state (golden §2)."""

    def __init__(self, settings: GRU4RecSettings, num_items: int, window: int) -> None:
        super().__init__(settings, num_items, window, settings.width)
        self.gru = nn.GRU(settings.width, settings.width, batch_first=True)

    def encode(self, history: Tensor, length: Tensor, extra: Tensor | None = None) -> Tensor:
        """Representation ``[B, D]``; steps after the last one run too, but nothing reads them."""
        states, _ = self.gru(self.dropout(self.embed(history, extra)))
        last = (length.clamp(min=1) - 1).view(-1, 1, 1).expand(-1, 1, states.shape[2])
        return self.dropout(states.gather(1, last).squeeze(1))
