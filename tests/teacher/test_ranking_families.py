"""Decoders of many families: beams that share their prompt say what beams with copies of it say."""

from __future__ import annotations

from collections.abc import Callable

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
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from src.core.errors import ModelError
from src.teacher.ranking.constrained import beam_search, rank_all
from src.teacher.ranking.continuation import can_share
from src.teacher.ranking.exact import score_all
from src.teacher.ranking.title_tree import TitleTree

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
    for hold in ("shared", "expanded"):
        scores = score_all(llm, embedded, mask, tree, hold=hold)  # type: ignore[arg-type]
        torch.testing.assert_close(scores, truth, rtol=1e-4, atol=1e-3)
        ranking = beam_search(llm, embedded, mask, tree, 5, len(TITLES), hold=hold)  # type: ignore[arg-type]
        assert ranking.items.tolist() == rank_all(truth, 5).items.tolist()


@pytest.mark.parametrize("family", OTHERS)
def test_others_are_expanded(family: str) -> None:
    llm, (embedded, mask), tree = build(OTHERS[family](), "eager"), prompts(), TitleTree.of(TITLES, END)
    assert not can_share(llm, 40)
    with pytest.raises(ModelError, match="cannot share"):
        score_all(llm, embedded, mask, tree, hold="shared")
    truth = brute_force(llm, embedded, mask)
    torch.testing.assert_close(score_all(llm, embedded, mask, tree), truth, rtol=1e-4, atol=1e-3)
    assert beam_search(llm, embedded, mask, tree, 5, 9).items.tolist() == rank_all(truth, 5).items.tolist()
