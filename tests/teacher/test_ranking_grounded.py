"""Free answers, their embeddings, and the items nearest to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from src.core.errors import DataError, TrainingFailed
from src.teacher.backbone.gated_lora import inject
from src.teacher.settings import LoraSettings
from src.teacher.title_lm.decoding.grounding import distances, embed_texts, generate, ground
from tests.fixtures import NUM_ITEMS, id_map_of
from tests.teacher.builders import WIDTH

TITLES = list(id_map_of(NUM_ITEMS).titles)


@pytest.fixture(scope="module")
def tokenizer(llama: Path) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(llama)
    return loaded


@pytest.fixture(scope="module")
def llm(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A LLaMA with a head whose next tokens depend on what it read."""
    return build(tokenizer)


def build(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return model


def prompts(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Random prompts of these lengths, padded on the left."""
    torch.manual_seed(2)
    mask = torch.tensor([[0] * (max(lengths) - length) + [1] * length for length in lengths])
    return torch.randn(len(lengths), max(lengths), WIDTH), mask


@torch.no_grad()
def greedy(llm: PreTrainedModel, prompt: Tensor, count: int, end_id: int) -> list[int]:
    """The reference: the whole sequence is read anew for each token."""
    written: list[int] = []
    while len(written) < count:
        token = int(llm(inputs_embeds=prompt.unsqueeze(0), use_cache=False).logits[0, -1].argmax())
        if token == end_id:
            break
        written.append(token)
        prompt = torch.cat([prompt, llm.get_input_embeddings()(torch.tensor([token]))])
    return written


def test_greedy_answers(llm: PreTrainedModel) -> None:
    lengths = [3, 5, 4, 2]
    embedded, mask = prompts(lengths)
    free = [greedy(llm, embedded[row, -length:], 8, end_id=-1) for row, length in enumerate(lengths)]
    assert generate(llm, embedded, mask, 8, end_id=-1) == free
    # the third token of the first answer now ends answers: they stop at different places
    end_id = free[0][2]
    stopped = [greedy(llm, embedded[row, -length:], 8, end_id) for row, length in enumerate(lengths)]
    assert len({len(answer) for answer in stopped}) > 1
    assert generate(llm, embedded, mask, 8, end_id) == stopped


def test_an_answer_keeps_its_gate_when_others_have_ended(tokenizer: PreTrainedTokenizerBase) -> None:
    adapters = inject(build(tokenizer), LoraSettings(rank=8, experts=4, alpha=16.0))
    torch.manual_seed(4)
    for name, parameter in adapters.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.4)
    weights, (embedded, mask) = torch.eye(4), prompts([4, 4, 4, 4])
    llm: Any = adapters.model

    def answers(rows: list[int], end_id: int) -> list[list[int]]:
        own = torch.tensor(rows)
        gate = lambda sequences: adapters.scope(weights[own][sequences])  # noqa: E731
        return generate(llm, embedded[own], mask[own], 8, end_id, gate)

    end_id = answers([0], -1)[0][2]
    together = answers([0, 1, 2, 3], end_id)
    assert together == [answers([row], end_id)[0] for row in range(4)]
    assert len(together[0]) < max(map(len, together))


@torch.no_grad()
def one_by_one(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    rows = []
    for title in TITLES:
        ids = torch.tensor([tokenizer(f" {title}")["input_ids"]])
        states = llm.model(input_ids=ids).last_hidden_state[0]
        rows.append(states.mean(dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_titles_embedded_in_batches(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
    embedded = embed_texts(llm, tokenizer, TITLES, batch_size)
    torch.testing.assert_close(embedded, one_by_one(llm, tokenizer), rtol=1e-5, atol=1e-5)


def test_special_tokens_are_a_part_of_the_text(bert: Path, llm: PreTrainedModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bert)
    assert len(tokenizer(" a")["input_ids"]) == 2 + len(tokenizer(" a", add_special_tokens=False)["input_ids"])
    embedded = embed_texts(llm, tokenizer, TITLES, 4)
    torch.testing.assert_close(embedded, one_by_one(llm, tokenizer), rtol=1e-5, atol=1e-5)


def test_equal_texts_have_equal_rows(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    embedded = embed_texts(llm, tokenizer, [TITLES[1], TITLES[0], TITLES[1], "another text"], batch_size=2)
    assert torch.equal(embedded[0], embedded[2])
    assert not torch.equal(embedded[0], embedded[1])


def test_titles_are_read_without_adapters(tokenizer: PreTrainedTokenizerBase) -> None:
    plain = embed_texts(build(tokenizer), tokenizer, TITLES, 8)
    adapters = inject(build(tokenizer), LoraSettings(rank=8, experts=4, alpha=16.0))
    for name, parameter in adapters.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.4)
    assert torch.equal(embed_texts(adapters.model, tokenizer, TITLES, 8), plain)


def test_distances_by_hand() -> None:
    items = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0], [0.0, -1.0]])
    found = distances(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), items)
    torch.testing.assert_close(found, torch.tensor([[5.0, 1, 0, 1], [4, 10**0.5, 3, 10**0.5]]))


def test_small_distances_between_long_vectors_keep_their_digits() -> None:
    torch.manual_seed(5)
    items = torch.randn(50, 64) + 1000
    found = distances(items[:8] + 1e-2 * torch.randn(8, 64), items)
    assert found.argmin(dim=1).tolist() == list(range(8))
    assert (found.amin(dim=1) < 0.2).all()


def test_distances_of_answers(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    items = embed_texts(llm, tokenizer, TITLES, 4)
    embedded, mask = prompts([3, 5, 4])
    found = ground(llm, tokenizer, embedded, mask, items, 6, end_id=-1)
    answers = [tokenizer.decode(ids).strip() for ids in generate(llm, embedded, mask, 6, -1)]
    wanted = torch.cdist(embed_texts(llm, tokenizer, answers, 1), items)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    for row, length in enumerate([3, 5, 4]):
        own = embedded[row : row + 1, -length:], mask[row : row + 1, -length:]
        alone = ground(llm, tokenizer, *own, items, 6, end_id=-1)
        torch.testing.assert_close(alone[0], found[row], rtol=1e-4, atol=1e-4)


def test_an_answer_that_is_a_title_means_that_item(
    monkeypatch: pytest.MonkeyPatch, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    titles = [*TITLES, TITLES[4]]
    items = embed_texts(llm, tokenizer, titles, 4)
    said = [tokenizer(f" {TITLES[row]}", add_special_tokens=False)["input_ids"] for row in (7, 4)]
    monkeypatch.setattr("src.teacher.title_lm.decoding.grounding.generate", lambda *_: said)
    found = ground(llm, tokenizer, *prompts([3, 3]), items, 6, end_id=-1)
    near = found < 1e-4
    # an item with the same title is as near
    assert [row.nonzero().flatten().tolist() for row in near] == [[7], [4, NUM_ITEMS]]
    assert found[1, 4] == found[1, NUM_ITEMS]
    assert found[~near].min() > 1e-2


def test_an_empty_answer_says_nothing(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    items = embed_texts(llm, tokenizer, TITLES, 4)
    embedded, mask = prompts([3])
    end_id = generate(llm, embedded, mask, 1, -1)[0][0]
    found = ground(llm, tokenizer, embedded, mask, items, 6, end_id)
    torch.testing.assert_close(found, torch.cdist(items.mean(dim=0, keepdim=True), items))


def test_bad_questions(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    embedded, mask = prompts([3])
    with pytest.raises(ValueError, match="at least 1"):
        generate(llm, embedded, mask, 0, end_id=-1)
    for texts in ([], ["a", " "]):
        with pytest.raises(DataError, match="nothing"):
            embed_texts(llm, tokenizer, texts, 4)
    with pytest.raises(TrainingFailed, match="not numbers"):
        generate(llm, embedded * float("nan"), mask, 2, end_id=-1)
