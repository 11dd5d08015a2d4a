"""What a LLaMA-shaped model has to compute, by arithmetic: the numerator of model FLOP utilisation.

One multiply-add counts two operations. N counts the weights that are multiplied with every token: the projections of
all layers, without embeddings (looked up), norms and head. Forward costs 2·N a token; the backward pass of a frozen
model needs the gradients of activations only, another 2·N. Causal attention of a sequence of S tokens costs
4·layers·width·S(S+1)/2 forward (queries by keys, weights by values), twice that backward, since both factors need a
gradient. Not counted, as is usual, so that utilisation is rather said too low: adapters, projector, gate and head,
everything element-wise, padding, and what gradient checkpointing computes a second time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class LlamaShape:
    """Widths and counts as in a LLaMA's config; ``feed_forward`` is its intermediate size."""

    width: int
    layers: int
    heads: int
    key_value_heads: int
    feed_forward: int
    vocabulary: int

    @property
    def projections(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the seven linear maps of a layer: q, k, v, o, gate, up, down."""
        narrow = self.width // self.heads * self.key_value_heads
        attention = [(self.width, self.width), (self.width, narrow), (self.width, narrow), (self.width, self.width)]
        return [*attention, *[(self.width, self.feed_forward)] * 2, (self.feed_forward, self.width)]

    @property
    def multiplied(self) -> int:
        """N."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.projections)

    @property
    def parameters(self) -> int:
        """All weights of the model without a language-model head: N, embeddings, norms."""
        return self.multiplied + self.vocabulary * self.width + (2 * self.layers + 1) * self.width

    def adapter_parameters(self, rank: int) -> int:
        """Weights of a LoRA of this rank in every projection."""
        return self.layers * sum(rank * (inputs + outputs) for inputs, outputs in self.projections)

    @property
    def cache_numbers(self) -> int:
        """Keys and values that the cache holds for each token."""
        return 2 * self.layers * (self.width // self.heads) * self.key_value_heads


SHAPES = {
    "tiny": LlamaShape(64, layers=2, heads=4, key_value_heads=4, feed_forward=172, vocabulary=1000),
    "small": LlamaShape(256, layers=4, heads=4, key_value_heads=4, feed_forward=688, vocabulary=1000),
    "tinyllama-1.1b": LlamaShape(2048, layers=22, heads=32, key_value_heads=4, feed_forward=5632, vocabulary=32000),
    "llama-2-7b": LlamaShape(4096, layers=32, heads=32, key_value_heads=32, feed_forward=11008, vocabulary=32000),
}


def attention_flops(shape: LlamaShape, tokens: int) -> int:
    """Forward, for one sequence: each token looks at itself and those before it."""
    return 4 * shape.layers * shape.width * (tokens * (tokens + 1) // 2)


def forward_flops(shape: LlamaShape, lengths: Iterable[int]) -> int:
    """A forward pass over sequences of these many real tokens."""
    return sum(2 * shape.multiplied * tokens + attention_flops(shape, tokens) for tokens in lengths)


def training_flops(shape: LlamaShape, lengths: Iterable[int]) -> int:
    """Forward and backward with a frozen base: 4·N a token, and three times the attention of a forward pass."""
    return sum(4 * shape.multiplied * tokens + 3 * attention_flops(shape, tokens) for tokens in lengths)


def decoding_bytes(shape: LlamaShape, passes: int, cached: int, bytes_each: int) -> int:
    """The least that ``passes`` decoding steps read: all weights of layers and head once each, whatever the batch, and
    ``cached`` places of the key-value cache, summed over rows and passes. Adapters are not counted.
    """
    weights = shape.multiplied + shape.vocabulary * shape.width
    return bytes_each * (passes * weights + cached * shape.cache_numbers)


def utilisation(work: float, seconds: float, rate: float) -> float:
    """Share of a machine's measured ``rate`` (work a second) that was put to use.

    Raises ``ValueError`` when there was no time or no rate.
    """
    if seconds <= 0 or rate <= 0:
        raise ValueError(f"{seconds} seconds at a rate of {rate} say nothing about utilisation")
    return work / (seconds * rate)
