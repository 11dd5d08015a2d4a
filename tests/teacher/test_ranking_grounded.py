"""Free answers, their embeddings, and the items nearest to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from src.core.errors import ConfigError, DataError, TrainingFailed
from src.teacher.gated_lora import inject
from src.teacher.ranking.grounded import embed_texts, generate, ground, nearest
from src.teacher.settings import LoraSettings
from tests.fixtures import NUM_ITEMS, id_map_of
from tests.teacher.builders import WIDTH

Pooling = Literal["mean", "last"]
TITLES = list(id_map_of(NUM_ITEMS).titles)
both = pytest.mark.parametrize("pooling", ["mean", "last"])


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
def one_by_one(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pooling: Pooling) -> Tensor:
    rows = []
    for title in TITLES:
        ids = torch.tensor([tokenizer(f" {title}")["input_ids"]])
        states = llm.model(input_ids=ids).last_hidden_state[0]
        rows.append(states.mean(dim=0) if pooling == "mean" else states[-1])
    return torch.stack(rows)


@both
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_titles_embedded_in_batches(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pooling: Pooling, batch_size: int
) -> None:
    embedded = embed_texts(llm, tokenizer, TITLES, batch_size, pooling)
    torch.testing.assert_close(embedded, one_by_one(llm, tokenizer, pooling), rtol=1e-5, atol=1e-5)


def test_special_tokens_are_a_part_of_the_text(bert: Path, llm: PreTrainedModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bert)
    assert len(tokenizer(" a")["input_ids"]) == 2 + len(tokenizer(" a", add_special_tokens=False)["input_ids"])
    embedded = embed_texts(llm, tokenizer, TITLES, 4)
    torch.testing.assert_close(embedded, one_by_one(llm, tokenizer, "mean"), rtol=1e-5, atol=1e-5)


def test_equal_texts_have_equal_rows(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    embedded = embed_texts(llm, tokenizer, [TITLES[1], TITLES[0], TITLES[1], "another text"], batch_size=2)
    assert torch.equal(embedded[0], embedded[2])
    assert not torch.equal(embedded[0], embedded[1])


@both
def test_titles_are_read_without_adapters(tokenizer: PreTrainedTokenizerBase, pooling: Pooling) -> None:
    plain = embed_texts(build(tokenizer), tokenizer, TITLES, 8, pooling)
    adapters = inject(build(tokenizer), LoraSettings(rank=8, experts=4, alpha=16.0))
    for name, parameter in adapters.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.4)
    assert torch.equal(embed_texts(adapters.model, tokenizer, TITLES, 8, pooling), plain)


def test_nearest_by_hand() -> None:
    items = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0], [0.0, -1.0]])
    found, distances = nearest(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), items, 4)
    # equally near: the smaller id first
    assert found.tolist() == [[2, 1, 3, 0], [2, 1, 3, 0]]
    torch.testing.assert_close(distances, torch.tensor([[0.0, 1, 1, 5], [3, 10**0.5, 10**0.5, 4]]))


def test_small_distances_between_long_vectors_keep_their_digits() -> None:
    torch.manual_seed(5)
    items = torch.randn(50, 64) + 1000
    found, distances = nearest(items[:8] + 1e-2 * torch.randn(8, 64), items, 50)
    assert found[:, 0].tolist() == list(range(8))
    assert (distances[:, 0] < 0.2).all()


@both
def test_answers_ranked_by_distance(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pooling: Pooling) -> None:
    items = embed_texts(llm, tokenizer, TITLES, 4, pooling)
    embedded, mask = prompts([3, 5, 4])
    found = ground(llm, tokenizer, embedded, mask, items, NUM_ITEMS, 6, end_id=-1, pooling=pooling)
    assert found.answers == [tokenizer.decode(ids).strip() for ids in generate(llm, embedded, mask, 6, -1)]
    distances = torch.cdist(embed_texts(llm, tokenizer, found.answers, 1, pooling), items)
    torch.testing.assert_close(found.distances, distances.sort(dim=1).values, rtol=1e-4, atol=1e-4)
    assert found.items.sort(dim=1).values.tolist() == [list(range(NUM_ITEMS))] * 3
    assert (found.distances.diff(dim=1) >= 0).all()
    for row, length in enumerate([3, 5, 4]):
        own = embedded[row : row + 1, -length:], mask[row : row + 1, -length:]
        alone = ground(llm, tokenizer, *own, items, NUM_ITEMS, 6, end_id=-1, pooling=pooling)
        assert alone.answers == [found.answers[row]]
        assert alone.items[0].tolist() == found.items[row].tolist()
        torch.testing.assert_close(alone.distances[0], found.distances[row], rtol=1e-4, atol=1e-4)


@both
def test_an_answer_that_is_a_title_means_that_item(
    monkeypatch: pytest.MonkeyPatch, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pooling: Pooling
) -> None:
    titles = [*TITLES, TITLES[4]]
    items = embed_texts(llm, tokenizer, titles, 4, pooling)
    said = [tokenizer(f" {TITLES[row]}", add_special_tokens=False)["input_ids"] for row in (7, 4)]
    monkeypatch.setattr("src.teacher.ranking.grounded.generate", lambda *_: said)
    found = ground(llm, tokenizer, *prompts([3, 3]), items, 3, 6, end_id=-1, pooling=pooling)
    assert found.answers == [TITLES[7], TITLES[4]]
    # an item with the same title is as near, and comes after it
    assert (found.items[0, 0].item(), found.items[1, :2].tolist()) == (7, [4, NUM_ITEMS])
    assert found.distances[[0, 1, 1], [0, 0, 1]].max() < 1e-4
    assert found.distances[:, 2].min() > 1e-2


def test_an_empty_answer_says_nothing(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    items = embed_texts(llm, tokenizer, TITLES, 4)
    embedded, mask = prompts([3])
    end_id = generate(llm, embedded, mask, 1, -1)[0][0]
    found = ground(llm, tokenizer, embedded, mask, items, 2, 6, end_id)
    assert found.answers == [""]
    torch.testing.assert_close(found.embedding, items.mean(dim=0, keepdim=True))
    torch.testing.assert_close(found.distances[0], torch.cdist(items.mean(0, keepdim=True), items)[0].sort().values[:2])


def test_bad_questions(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    items, (embedded, mask) = torch.zeros(3, WIDTH), prompts([3])
    for top_n in (0, 4):
        with pytest.raises(ConfigError, match="catalogue's size"):
            ground(llm, tokenizer, embedded, mask, items, top_n, 6, end_id=-1)
    with pytest.raises(ValueError, match="at least 1"):
        generate(llm, embedded, mask, 0, end_id=-1)
    for texts in ([], ["a", " "]):
        with pytest.raises(DataError, match="nothing"):
            embed_texts(llm, tokenizer, texts, 4)
    with pytest.raises(TrainingFailed, match="not numbers"):
        generate(llm, embedded * float("nan"), mask, 2, end_id=-1)
