"""From the recommender's item embeddings into the language model's embedding space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

_SMALLEST = 1e-6
_ROWS = 1024  # tokens looked up at once: a float64 copy of a large model's whole table would be gigabytes


@dataclass(frozen=True, eq=False)
class TokenMoments:
    """Moments of a language model's tokens, as its layers see them.

    ``mean`` ``[D]``, and ``spread``, their standard deviation (n − 1), mean over D. Both float32.
    """

    mean: Tensor
    spread: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, embedding: nn.Module) -> Self:
        """Every token looked up once: some families (Gemma) scale what their table holds on the way out of it."""
        table: Tensor = embedding.weight  # type: ignore[assignment] # a module's attributes are unknown
        count, width = table.shape
        total, squares = (torch.zeros(width, dtype=torch.float64, device=table.device) for _ in range(2))
        for ids in torch.arange(count, device=table.device).split(_ROWS):
            looked_up = embedding(ids).double()
            total += looked_up.sum(dim=0)
            squares += looked_up.square().sum(dim=0)
        mean = total / count
        variance = (squares - count * mean.square()).clamp(min=0) / (count - 1)
        return cls(mean.float(), variance.sqrt().mean().float())


class Projector(nn.Module):
    """W2 gelu(W0 x + b0) + b2 with the exact GELU, H → D → D (golden README §5)."""

    def __init__(self, width: int, llm_width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, llm_width)
        self.activation = nn.GELU()
        self.outer = nn.Linear(llm_width, llm_width)

    def forward(self, items: Tensor) -> Tensor:
        """``[..., H]`` → ``[..., D]``."""
        projected: Tensor = self.outer(self.activation(self.inner(items)))
        return projected

    @torch.no_grad()
    def calibrate(self, items: Tensor, tokens: TokenMoments) -> None:
        """Start where its outputs look like token embeddings: same mean, same spread, different items apart.

        ``items`` ``[V, H]`` are the recommender's embeddings. Trained item embeddings are small; without this all
        placeholders would begin as nearly the same vector, the biases.
        """
        centre, spread = items.mean(dim=0), (items - items.mean(dim=0)).square().mean().sqrt().clamp(min=_SMALLEST)
        self.inner.weight.div_(spread)
        self.inner.bias.sub_(self.inner.weight @ centre)
        projected = self(items)
        wanted = tokens.spread / projected.std(dim=0).mean().clamp(min=_SMALLEST)
        self.outer.weight.mul_(wanted)
        self.outer.bias.copy_(tokens.mean - (projected.mean(dim=0) - self.outer.bias) * wanted)
