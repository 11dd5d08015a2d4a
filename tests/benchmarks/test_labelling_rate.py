"""Passes through a model that writes, counted by kind on a model small enough to count by hand."""

from __future__ import annotations

import pytest
import torch

from benchmarks.labelling_rate import Asked, Part, cells
from benchmarks.model_flops import SHAPES
from benchmarks.passes import Watch
from benchmarks.random_teacher import Place, random_causal_llama
from src.teacher.title_lm.decoding.continuation import CacheMode, no_gate, read_prompts
from src.teacher.title_lm.decoding.grounding import generate


@pytest.fixture(scope="module")
def watched() -> Watch:
    torch.manual_seed(0)
    return Watch(random_causal_llama(SHAPES["tiny"], Place(torch.device("cpu"), torch.float32)))


@pytest.mark.parametrize(
    ("cache_mode", "cached"), [("shared", [2 * (5 + 3), 2 * (8 + 3)]), ("expanded", [6 * 6, 6 * 7])]
)
def test_beams_read_one_cache_of_their_prompt_or_each_its_own(
    watched: Watch, cache_mode: CacheMode, cached: list[int]
) -> None:
    watched.seen.clear()
    embedded, mask = torch.randn(2, 5, 64), torch.ones(2, 5, dtype=torch.int64)
    with watched.watching(), torch.no_grad():
        _, continuation = read_prompts(watched.model, embedded, mask, gate=no_gate, cache_mode=cache_mode)
        for parents in (torch.zeros(2, 3, dtype=torch.int64), torch.arange(3).expand(2, -1)):
            continuation.step(parents, torch.ones(2, 3, dtype=torch.int64))
    (prompt,) = watched.of("prompt")
    assert (prompt.places, prompt.cached) == (10, 0)
    # three beams of two prompts of five tokens, twice
    assert [one.places for one in watched.of("decoding")] == [6, 6]
    assert [one.cached for one in watched.of("decoding")] == cached
    assert all(one.seconds > 0 for one in watched.seen)


def test_a_text_without_the_head_is_a_pass_of_its_own(watched: Watch) -> None:
    watched.seen.clear()
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    with watched.watching(), torch.no_grad():
        generate(watched.model, torch.randn(1, 4, 64), torch.ones(1, 4, dtype=torch.int64), 2, end_id=999)
        watched.model.base_model(input_ids=torch.ones_like(mask), attention_mask=mask, use_cache=False)
    assert [one.kind for one in watched.seen] == ["prompt", "decoding", "text"]
    assert torch.equal(watched.seen[2].mask, mask)  # type: ignore[arg-type]
    # nothing is watched outside of the block
    watched.model(input_ids=mask)
    assert len(watched.seen) == 3


def test_bandwidth_is_of_the_decoding_passes_alone() -> None:
    asked = Asked("x", 10, flops=60, seconds=4.0, prompts=Part(2, 1.0, 50), decoding=Part(5, 2.0, 10), read=30)
    # 10 rows in 4 s; 60 of 4·20 operations; 50 of 1·20; 30 of 2·100 bytes
    expected = ["x", "2.5", "75.0%", "25%", "250.0%", "50%", "5", "15.0%"]
    assert cells(asked, rate=20.0, bandwidth=100.0) == expected
    assert cells("y", rate=1.0, bandwidth=1.0)[:2] == ["y", "out of memory"]
