"""SASRec as DLLM2Rec trains it: one block, the published wiring (golden §2), at any width and number of heads."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from src.core.settings import STRICT
from src.student.base import SequenceStudent, register
from src.student.settings import NetworkSettings


@dataclass(frozen=True, config=STRICT)
class SASRecSettings(NetworkSettings):
    """SASRec with the published block."""

    architecture: Annotated[str, Field(description="SASRec as DLLM2Rec trains it")] = "sasrec"
    heads: Annotated[int, Field(ge=1, description="attention heads; must divide the width")] = 1

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} must divide width = {self.width}")


class LastQueryAttention(nn.Module):
    """SASRec's attention for the last query only, which is all that next-item prediction reads.

    As published, keys and values come from the un-normalised input, scores are scaled by sqrt(D) (not the head's
    width), and there is no output projection. For one query, (x W_k)·q = x·(W_k^T q) and Σ a (W_v x) = W_v (Σ a x):
    the projections are applied to one vector a head instead of L.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, keys: Tensor, visible: Tensor) -> Tensor:
        """query ``[B, D]``, keys ``[B, L, D]``, visible ``[B, L]`` bool → ``[B, D]``."""
        batch, width = query.shape
        split = (self.heads, width // self.heads)
        q = self.query(query).view(batch, *split)
        folded = torch.einsum("bhe,hed->bhd", q, self.key.weight.view(*split, width))
        offset = (q * self.key.bias.view(split)).sum(dim=2, keepdim=True)
        scores = (folded @ keys.transpose(1, 2) + offset) / width**0.5
        lowest = torch.finfo(scores.dtype).min
        weights = self.dropout(scores.masked_fill(~visible.unsqueeze(1), lowest).softmax(dim=2))
        context = torch.einsum("bhd,hed->bhe", weights @ keys, self.value.weight.view(*split, width))
        # dropout leaves weights that do not sum to one, and the value's bias is weighted by that sum
        biased = context + weights.sum(dim=2, keepdim=True) * self.value.bias.view(split)
        return biased.reshape(batch, width)


@register("sasrec", SASRecSettings)
class SASRec(SequenceStudent):
    """Self-attentive sequential recommendation, one block, at the last position (golden §2)."""

    def __init__(self, settings: SASRecSettings, num_items: int, window: int) -> None:
        super().__init__(settings, num_items, window, settings.width)
        width = settings.width
        self.positions = nn.Embedding(window, width)
        nn.init.normal_(self.positions.weight, std=0.01)
        self.norm_query, self.norm_hidden, self.norm_inner, self.norm_out = (nn.LayerNorm(width) for _ in range(4))
        self.attention = LastQueryAttention(width, settings.heads, settings.dropout)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def encode(self, history: Tensor, length: Tensor, extra: Tensor | None = None) -> Tensor:
        """Representation ``[B, D]``: LN3's output at position length − 1 (the "user vector" of iLoRA)."""
        real = history != self.padding_id
        last = length.clamp(min=1).unsqueeze(1) - 1
        x = self.dropout(self.embed(history, extra) + self.positions.weight[: history.shape[1]]) * real.unsqueeze(2)
        query = self.norm_query(x.gather(1, last.unsqueeze(2).expand(-1, 1, x.shape[2])).squeeze(1))
        visible = real & (torch.arange(history.shape[1], device=history.device) <= last)
        alive = real.gather(1, last)
        hidden = self.norm_hidden(self.attention(query, x, visible) * alive + query)
        inner = self.dropout(self.outer(F.relu(self.inner(hidden))))
        out: Tensor = self.norm_out(self.norm_inner(inner + hidden) * alive)
        return out
