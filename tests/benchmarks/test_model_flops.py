"""The arithmetic of utilisation: by hand, by the published size of Llama-2-7B, and by torch's own counter."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaModel

from benchmarks.model_flops import (
    SHAPES,
    LlamaShape,
    attention_flops,
    decoding_bytes,
    forward_flops,
    training_flops,
    utilisation,
)

# heads of width 2; keys and values are half as wide as queries
HAND = LlamaShape(width=4, layers=3, heads=2, key_value_heads=1, feed_forward=5, vocabulary=7)
N = 3 * (4 * 4 + 4 * 2 + 4 * 2 + 4 * 4 + 4 * 5 + 4 * 5 + 5 * 4)


def test_weights_by_hand() -> None:
    assert HAND.multiplied == N == 324
    assert HAND.parameters == 324 + 7 * 4 + 7 * 4
    assert HAND.adapter_parameters(2) == 3 * 2 * (8 + 6 + 6 + 8 + 9 + 9 + 9)
    assert HAND.cache_numbers == 2 * 3 * 2


def test_llama_2_7b_has_its_published_size() -> None:
    shape = SHAPES["llama-2-7b"]
    head = shape.vocabulary * shape.width
    assert shape.parameters + head == 6_738_415_616
    # the published rank 16 over seven projections of 32 layers
    assert shape.adapter_parameters(16) == 39_976_960


def test_attention_sees_only_what_came_before() -> None:
    # three tokens see 1 + 2 + 3 = 6 places; a place costs 2 multiply-adds of width 4 in 3 layers
    assert attention_flops(HAND, 3) == 6 * (2 * 2 * 4) * 3
    assert attention_flops(HAND, 0) == 0


def test_sequences_add_up() -> None:
    assert forward_flops(HAND, [1, 3]) == 2 * N * 4 + (1 + 6) * 16 * 3
    assert training_flops(HAND, [1, 3]) == 4 * N * 4 + 3 * (1 + 6) * 16 * 3
    assert forward_flops(HAND, []) == training_flops(HAND, []) == 0


def test_decoding_reads_every_weight_once_a_step() -> None:
    assert decoding_bytes(HAND, passes=5, cached=0, bytes_each=2) == 5 * 2 * (N + 7 * 4)
    # a place of the cache: a key and a value of width 2 in each of 3 layers
    assert decoding_bytes(HAND, passes=5, cached=10, bytes_each=2) == 5 * 2 * (N + 7 * 4) + 10 * 2 * 12


def test_utilisation() -> None:
    assert utilisation(work=3.0, seconds=2.0, rate=6.0) == Fraction(1, 4)
    for seconds, rate in ((0.0, 1.0), (1.0, 0.0)):
        with pytest.raises(ValueError, match="say nothing"):
            utilisation(1.0, seconds, rate)


@pytest.fixture
def frozen() -> LlamaModel:
    """HAND as a model, with attention as plain matrix products, which torch counts in full."""
    config = LlamaConfig(
        vocab_size=HAND.vocabulary,
        hidden_size=HAND.width,
        intermediate_size=HAND.feed_forward,
        num_hidden_layers=HAND.layers,
        num_attention_heads=HAND.heads,
        num_key_value_heads=HAND.key_value_heads,
        attn_implementation="eager",
    )
    return LlamaModel(config).requires_grad_(False)


def counted(model: LlamaModel, inputs: Tensor, backward: bool) -> int:
    """What torch counts; it takes no account of the causal mask. Rotary angles are no part of the model's work."""
    with FlopCounterMode(display=False) as counter:
        states = model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        if backward:
            states.sum().backward()
    by_module = counter.get_flop_counts()
    angles = sum(sum(counts.values()) for name, counts in by_module.items() if name.endswith("rotary_emb"))
    return counter.get_total_flops() - angles


def test_torch_counts_the_same(frozen: LlamaModel) -> None:
    batch, tokens = 2, 6
    inputs = torch.randn(batch, tokens, HAND.width, requires_grad=True)
    # without the mask every token sees all 6 places, on average the causal share is 7/12 of that
    whole = batch * attention_flops(HAND, tokens) * 12 // 7
    matrices = batch * tokens * 2 * N
    assert counted(frozen, inputs, backward=False) == matrices + whole
    assert counted(frozen, inputs, backward=True) == 2 * matrices + 3 * whole
    lengths = [tokens] * batch
    assert training_flops(HAND, lengths) == 2 * matrices + 3 * whole * 7 // 12
