"""A causal transformer with pre-norm blocks and relative positions: the student that this platform recommends.

Next-item prediction reads the last place only, so the last block is computed for one query; earlier blocks are computed
for all places, because the last one reads them.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from src.core.loop_settings import LoopSettings
from src.core.settings import STRICT
from src.student.base import SequenceStudent, register
from src.student.settings import NetworkSettings, PriorName, Window


@dataclass(frozen=True, config=STRICT)
class TransformerSettings(NetworkSettings):
    """Pre-norm blocks over a window of any length."""

    architecture: Annotated[str, Field(description="causal transformer with pre-norm blocks")] = "transformer"
    window: Window = 20
    dropout: Annotated[float, Field(ge=0, lt=1, description="dropout rate in training")] = 0.2
    heads: Annotated[int, Field(ge=1, description="attention heads; must divide the width")] = 2
    blocks: Annotated[int, Field(ge=1, le=100, description="attention blocks")] = 1
    feedforward: Annotated[int, Field(ge=1, description="width of a block's inner layer, in multiples of D")] = 4
    tied: Annotated[
        bool, Field(description="score with the item embeddings themselves instead of a free row for each item")
    ] = True
    prior: PriorName = "auto"
    learning_rate: Annotated[float, Field(gt=0, description="Adam's learning rate")] = 3e-3
    loop: Annotated[LoopSettings, Field(description="epochs, batches, early stopping")] = field(
        default_factory=lambda: LoopSettings(ema=0.998)
    )

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} must divide width = {self.width}")


class Attention(nn.Module):
    """Causal attention; a learned number for each head and distance between query and key is added to the scores, as in
    T5 (Raffel et al., JMLR 2020)."""

    def __init__(self, settings: TransformerSettings, window: int) -> None:
        super().__init__()
        width = settings.width
        self.heads, self.dropout = settings.heads, nn.Dropout(settings.dropout)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        #: ``[heads, window]``, the bias at distance 0, 1, … between query and key
        self.distance = nn.Parameter(torch.zeros(settings.heads, window))

    def last(self, query: Tensor, keys: Tensor, last: Tensor) -> Tensor:
        """Attention of the last place alone.

        For one query, (W_k n)·q = n·(W_kᵀ q) and Σ a (W_v n) = W_v (Σ a n): projections are applied to one vector a
        head instead of L.

        Args:
            query: ``[B, D]``.
            keys: ``[B, L, D]``.
            last: the last real place of each row, ``[B]``.

        Returns:
            ``[B, D]``.
        """
        batch, width = query.shape
        split = (self.heads, width // self.heads)
        q = self.query(query).view(batch, *split)
        folded = torch.einsum("bhe,hed->bhd", q, self.key.weight.view(*split, width))
        # the key's bias shifts all scores of a query alike: softmax does not see it
        distance = last.unsqueeze(1) - torch.arange(keys.shape[1], device=keys.device)
        bias = self.distance[:, distance.clamp(min=0)].transpose(0, 1)
        scores = (folded @ keys.transpose(1, 2)) / split[1] ** 0.5 + bias
        lowest = torch.finfo(scores.dtype).min
        weights = self.dropout(scores.masked_fill((distance < 0).unsqueeze(1), lowest).softmax(dim=2))
        context = torch.einsum("bhd,hed->bhe", weights @ keys, self.value.weight.view(*split, width))
        biased = context + weights.sum(dim=2, keepdim=True) * self.value.bias.view(split)
        return self.out(biased.reshape(batch, width))  # type: ignore[no-any-return]

    def all(self, states: Tensor) -> Tensor:
        """Attention of every place to itself and the places before it: ``[B, L, D]`` → ``[B, L, D]``.

        Histories are padded on the right, so no real place sees padding.
        """
        batch, length, width = states.shape

        def split(projection: nn.Linear) -> Tensor:
            return projection(states).view(batch, length, self.heads, -1).transpose(1, 2)  # type: ignore[no-any-return]

        place = torch.arange(length, device=states.device)
        distance, window = place.unsqueeze(1) - place, self.distance.shape[1]
        # a history may be longer than the window (training at all positions): each place sees its own window
        hidden = (distance < 0) | (distance >= window)
        bias = self.distance[:, distance.clamp(min=0, max=window - 1)].masked_fill(
            hidden, torch.finfo(states.dtype).min
        )
        rate = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            split(self.query), split(self.key), split(self.value), attn_mask=bias, dropout_p=rate
        )
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))  # type: ignore[no-any-return]


class Block(nn.Module):
    """x + attention(LN(x)), then + feed-forward(LN(·)); sums alone on the way through (Xiong et al., ICML 2020)."""

    def __init__(self, settings: TransformerSettings, window: int) -> None:
        super().__init__()
        width = settings.width
        self.norm_in, self.norm_inner = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(settings, window)
        self.inner = nn.Linear(width, settings.feedforward * width)
        self.outer = nn.Linear(settings.feedforward * width, width)
        self.dropout = nn.Dropout(settings.dropout)

    def last(self, states: Tensor, last: Tensor) -> Tensor:
        """``[B, L, D]`` → the last place's new state ``[B, D]``."""
        at = last.view(-1, 1, 1).expand(-1, 1, states.shape[2])
        normed = self.norm_in(states)
        mixed = self.attention.last(normed.gather(1, at).squeeze(1), normed, last)
        return self._feed_forward(states.gather(1, at).squeeze(1) + self.dropout(mixed))

    def all(self, states: Tensor) -> Tensor:
        """``[B, L, D]`` → ``[B, L, D]``."""
        return self._feed_forward(states + self.dropout(self.attention.all(self.norm_in(states))))

    def _feed_forward(self, states: Tensor) -> Tensor:
        inner = self.dropout(F.relu(self.inner(self.norm_inner(states))))
        result: Tensor = states + self.dropout(self.outer(inner))
        return result


@register("transformer", TransformerSettings)
class Transformer(SequenceStudent):
    """Item embeddings, pre-norm blocks, a last LayerNorm, and a scorer that is tied to the embeddings or free."""

    INITIAL_STD = 0.02

    def __init__(self, settings: TransformerSettings, num_items: int, window: int) -> None:
        super().__init__(settings, num_items, window, settings.width, settings.tied)
        self.blocks = nn.ModuleList(Block(settings, window) for _ in range(settings.blocks))
        self.norm_out = nn.LayerNorm(settings.width)

    @property
    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def encode(self, history: Tensor, length: Tensor, extra: Tensor | None = None) -> Tensor:
        """Representation ``[B, D]`` of the last place."""
        states = self.dropout(self.embed(history, extra))
        for block in self._blocks[:-1]:
            states = block.all(states)
        last = length.clamp(min=1) - 1
        representation: Tensor = self.norm_out(self._blocks[-1].last(states, last))
        return representation

    def encode_all(self, history: Tensor, extra: Tensor | None = None) -> Tensor:
        """Representations ``[B, L, D]`` of every place: what each would be the last of."""
        states = self.dropout(self.embed(history, extra))
        for block in self._blocks:
            states = block.all(states)
        representations: Tensor = self.norm_out(states)
        return representations
