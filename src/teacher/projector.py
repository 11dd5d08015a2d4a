"""From the recommender's item embeddings into the language model's embedding space."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SMALLEST = 1e-6


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
    def calibrate(self, items: Tensor, tokens: Tensor) -> None:
        """Start where its outputs look like token embeddings: same mean, same spread, different items apart.

        ``items`` ``[V, H]`` are the recommender's embeddings, ``tokens`` ``[T, D]`` the language model's. Trained item
        embeddings are small; without this all placeholders would begin as nearly the same vector, the biases.
        """
        centre, spread = items.mean(dim=0), (items - items.mean(dim=0)).square().mean().sqrt().clamp(min=_SMALLEST)
        self.inner.weight.div_(spread)
        self.inner.bias.sub_(self.inner.weight @ centre)
        projected = self(items)
        wanted = tokens.float().std(dim=0).mean() / projected.std(dim=0).mean().clamp(min=_SMALLEST)
        self.outer.weight.mul_(wanted)
        self.outer.bias.copy_(tokens.float().mean(dim=0) - (projected.mean(dim=0) - self.outer.bias) * wanted)
