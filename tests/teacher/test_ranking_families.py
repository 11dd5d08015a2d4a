"""Decoders of many families: beams that share their prompt say what beams with copies of it say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BloomConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from src.core.errors import ModelError, TrainingFailed
from src.teacher.title_lm.decoding import beam_search as decoding
from src.teacher.title_lm.decoding.beam_search import beam_search
from src.teacher.title_lm.decoding.continuation import can_share
from src.teacher.title_lm.decoding.title_tree import TitleTree
from tests.teacher.exact import rank_all, score_all

VOCABULARY, WIDTH, END = 60, 16, 2
TITLES = [[5, 6], [7, 8, 9], [5], [7, 8], [30, 31, 32], [5, 8], [40], [5, 6, 10], [41, 42, 43, 44, 45, 46]]
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
OPT_SIZES = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "word_embed_proj_dim": WIDTH, "ffn_dim": 24}
FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES),
    "gemma": lambda: GemmaConfig(**SIZES),
    "mistral": lambda: MistralConfig(**SIZES),
    "opt": lambda: OPTConfig(**OPT_SIZES, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64),
    "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=64),
}
OTHERS: dict[str, Callable[[], PretrainedConfig]] = {
    "bloom": lambda: BloomConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, n_layer=2, n_head=2),
    "gemma2": lambda: Gemma2Config(**SIZES, sliding_window=4),
    "mistral, a short window": lambda: MistralConfig(**SIZES, sliding_window=4),
}


def build(config: PretrainedConfig, attention: str = "sdpa") -> PreTrainedModel:
    """A model with weights large enough to tell tokens apart."""
    torch.manual_seed(1)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return model


def prompts() -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(3, 6, WIDTH), torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6, [0, 0, 0, 1, 1, 1]])


@torch.no_grad()
def brute_force(llm: PreTrainedModel, embedded: Tensor, mask: Tensor) -> Tensor:
    """log P(title, end | prompt): one forward pass for each title and prompt, without padding and without a cache."""
    scores = torch.empty(len(mask), len(TITLES))
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        for item, title in enumerate(TITLES):
            answer = torch.tensor([*title, END])
            own = embedded[row, -length:]
            whole = torch.cat([own, llm.get_input_embeddings()(answer)]).unsqueeze(0)
            logits = llm(inputs_embeds=whole, use_cache=False).logits[0, length - 1 : -1]
            scores[row, item] = logits.log_softmax(dim=1).gather(1, answer.unsqueeze(1)).sum()
    return scores


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_and_expanded_are_exact(family: str, attention: str) -> None:
    llm, (embedded, mask), tree = build(FAMILIES[family](), attention), prompts(), TitleTree.of(TITLES, END)
    assert can_share(llm, 40)
    truth = brute_force(llm, embedded, mask)
    for cache_mode in ("shared", "expanded"):
        scores = score_all(llm, embedded, mask, tree, cache_mode=cache_mode)  # type: ignore[arg-type]
        torch.testing.assert_close(scores, truth, rtol=1e-4, atol=1e-3)
        ranking = beam_search(llm, embedded, mask, tree, 5, len(TITLES), cache_mode=cache_mode)  # type: ignore[arg-type]
        assert ranking.items.tolist() == rank_all(truth, 5).items.tolist()


@pytest.mark.parametrize("family", OTHERS)
def test_others_are_expanded(family: str) -> None:
    llm, (embedded, mask), tree = build(OTHERS[family](), "eager"), prompts(), TitleTree.of(TITLES, END)
    assert not can_share(llm, 40)
    with pytest.raises(ModelError, match="cannot share"):
        score_all(llm, embedded, mask, tree, cache_mode="shared")
    truth = brute_force(llm, embedded, mask)
    torch.testing.assert_close(score_all(llm, embedded, mask, tree), truth, rtol=1e-4, atol=1e-3)
    assert beam_search(llm, embedded, mask, tree, 5, 9).items.tolist() == rank_all(truth, 5).items.tolist()


@pytest.mark.parametrize(("at_once", "prompts_each"), [(0, 3), (9, 1), (1, 1), (18, 2), (27, 3)])
@pytest.mark.parametrize("family", OTHERS)
def test_copies_of_prompts_are_held_for_few_prompts_at_a_time(
    family: str, at_once: int, prompts_each: int, caplog: pytest.LogCaptureFixture
) -> None:
    llm, (embedded, mask), tree = build(OTHERS[family](), "eager"), prompts(), TitleTree.of(TITLES, END)
    whole, rows = beam_search(llm, embedded, mask, tree, 5, 9), list[int]()
    decoding._tell_once.cache_clear()
    caplog.set_level("INFO", logger="src.teacher.title_lm.decoding.beam_search")
    caplog.clear()
    llm.register_forward_hook(lambda model, given, output: rows.append(len(output.logits)))
    for _ in range(2):
        found = beam_search(llm, embedded, mask, tree, 5, 9, at_once=at_once)
        assert found.items.tolist() == whole.items.tolist()
        torch.testing.assert_close(found.log_probability, whole.log_probability, rtol=1e-4, atol=1e-4)
    assert rows[0] == 3  # all prompts are read in one pass
    # no prompt has more than six open beams: the other titles have ended or share their beginning
    assert max(rows[1:]) in range(4 * prompts_each, 6 * prompts_each + 1)
    told = [record.message for record in caplog.records if "constrained" in record.message]
    name = llm.config.model_type
    assert told == [f"constrained: each beam holds a copy of its {name} prompt, {prompts_each} prompts at a time"]


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an attention that is as good as FlashAttention: it can do everything but take a mask of our own."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **named: Any
    ) -> Any:
        assert attention_mask is None or query.shape[2] in (1, attention_mask.shape[-1]), "a mask of our own"
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **named)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "foreign", attend)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._local_mapping, "foreign", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    return "foreign"


def test_an_attention_that_cannot_share_steps_aside_for_the_search(foreign: str) -> None:
    llm, (embedded, mask), tree = build(FAMILIES["llama"]()), prompts(), TitleTree.of(TITLES, END)
    truth, seen = brute_force(llm, embedded, mask), list[tuple[str, int]]()
    llm.set_attn_implementation(foreign)
    llm.register_forward_hook(
        lambda model, given, output: seen.append((model.config._attn_implementation, len(output.logits)))
    )
    found = beam_search(llm, embedded, mask, tree, 5, len(TITLES), at_once=1)
    assert found.items.tolist() == rank_all(truth, 5).items.tolist()
    # beams were shared: three rows, one a prompt, in every pass
    assert set(seen) == {("sdpa", 3)}
    assert {module.config._attn_implementation for module in llm.modules() if hasattr(module, "config")} == {foreign}
    with pytest.raises(TrainingFailed, match="not finite"):
        beam_search(llm, embedded * float("nan"), mask, tree, 5, len(TITLES))
    assert llm.config._attn_implementation == foreign
