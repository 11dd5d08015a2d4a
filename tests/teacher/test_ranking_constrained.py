"""Beam search over the catalogue against the probability of every title, one forward pass for each."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedModel

from src.core.errors import ConfigError, ModelError, TrainingFailed
from src.teacher.backbone.gated_lora import inject
from src.teacher.settings import LoraSettings
from src.teacher.title_lm.decoding import beam_search as decoding
from src.teacher.title_lm.decoding.beam_search import beam_search
from src.teacher.title_lm.decoding.title_tree import TitleTree
from tests.teacher.exact import rank_all, score_all

Hold = Literal["shared", "expanded"]
VOCABULARY, WIDTH, END = 60, 16, 2
# items 1 and 6 have the same title; 3 begins 1; 9 is longer than the others
TITLES = [[5, 6], [7, 8, 9], [5], [7, 8], [30, 31, 32], [5, 8], [7, 8, 9], [40], [5, 6, 10], [41, 42, 43, 44, 45, 46]]
both = pytest.mark.parametrize("cache_mode", ["shared", "expanded"])


@pytest.fixture(scope="module")
def llm() -> PreTrainedModel:
    """A LLaMA whose next tokens depend on what it read."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.4)
    return model


@pytest.fixture(scope="module")
def tree() -> TitleTree:
    return TitleTree.of(TITLES, END)


def prompts(lengths: list[int], width: int | None = None, seed: int = 2) -> tuple[Tensor, Tensor]:
    """Random prompts of these lengths, padded on the left with numbers that must not matter."""
    generator = torch.Generator().manual_seed(seed)
    width = width or max(lengths)
    real = [torch.randn(length, WIDTH, generator=generator) for length in lengths]
    embedded = torch.stack([torch.cat([torch.full((width - len(row), WIDTH), 7.0), row]) for row in real])
    mask = torch.tensor([[0] * (width - length) + [1] * length for length in lengths])
    return embedded, mask


@torch.no_grad()
def brute_force(llm: PreTrainedModel, prompt: Tensor, titles: list[list[int]] = TITLES) -> Tensor:
    """log P(title, end | prompt) of each title for one prompt ``[S, D]`` without padding: ``[V]``."""
    table, scores = llm.get_input_embeddings(), []
    for title in titles:
        answer = torch.tensor([*title, END])
        whole = torch.cat([prompt, table(answer)]).unsqueeze(0)
        logits = llm(inputs_embeds=whole).logits[0, len(prompt) - 1 : -1].double()
        scores.append(logits.log_softmax(dim=1).gather(1, answer.unsqueeze(1)).sum())
    return torch.stack(scores).float()


def expected(scores: Tensor) -> list[int]:
    """Items by score, equal titles by id."""
    return sorted(range(len(scores)), key=lambda item: (-round(float(scores[item]), 4), item))


@both
def test_with_a_beam_for_each_item_the_ranking_is_exact(
    llm: PreTrainedModel, tree: TitleTree, cache_mode: Hold
) -> None:
    embedded, mask = prompts([3, 6, 4])
    ranking = beam_search(llm, embedded, mask, tree, top_n=10, beams=10, cache_mode=cache_mode)
    for row, length in enumerate([3, 6, 4]):
        truth = brute_force(llm, embedded[row, -length:])
        assert ranking.items[row].tolist() == expected(truth)
        torch.testing.assert_close(ranking.log_probability[row], truth[ranking.items[row]], rtol=1e-5, atol=1e-4)


@both
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_every_title_scored(llm: PreTrainedModel, tree: TitleTree, cache_mode: Hold, chunk: int) -> None:
    embedded, mask = prompts([3, 6, 4])
    scores = score_all(llm, embedded, mask, tree, chunk=chunk, cache_mode=cache_mode)
    truth = torch.stack([brute_force(llm, embedded[row, -length:]) for row, length in enumerate([3, 6, 4])])
    torch.testing.assert_close(scores, truth, rtol=1e-5, atol=1e-4)
    assert rank_all(scores, 4).items.tolist() == [expected(row)[:4] for row in truth]


@both
def test_a_narrow_beam_finds_n_different_items_and_their_true_scores(llm: PreTrainedModel, cache_mode: Hold) -> None:
    top_n, generator = 4, torch.Generator().manual_seed(3)
    sizes = torch.randint(1, 6, (80,), generator=generator).tolist()
    titles = [torch.randint(3, 9, (size,), generator=generator).tolist() for size in sizes]
    tree, (embedded, mask) = TitleTree.of(titles, END), prompts([5, 5, 2, 7])
    truth = score_all(llm, embedded, mask, tree)
    ranking = beam_search(llm, embedded, mask, tree, top_n, beams=top_n, cache_mode=cache_mode)
    torch.testing.assert_close(ranking.log_probability, truth.gather(1, ranking.items), rtol=1e-5, atol=1e-4)
    assert all(len(set(row)) == top_n for row in ranking.items.tolist())
    assert (ranking.log_probability.diff(dim=1) <= 0).all()
    wide = beam_search(llm, embedded, mask, tree, top_n, beams=80, cache_mode=cache_mode)
    assert wide.items.tolist() == rank_all(truth, top_n).items.tolist()
    assert (wide.log_probability - ranking.log_probability >= -1e-4).all()


@pytest.mark.parametrize("portion", [1, 1 << 27])
def test_reading_the_rest_at_once_changes_nothing(
    llm: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, portion: int
) -> None:
    monkeypatch.setattr("src.teacher.title_lm.decoding.beam_search._LOGITS", portion)
    generator = torch.Generator().manual_seed(5)
    sizes = torch.randint(1, 9, (60,), generator=generator).tolist()
    titles = [torch.randint(3, 6, (size,), generator=generator).tolist() for size in sizes]
    tree, (embedded, mask) = TitleTree.of(titles, END), prompts([5, 5, 2, 7, 3, 4, 4, 4])
    for beams in (1, 2, 7, 20):
        shared, expanded = (
            beam_search(llm, embedded, mask, tree, min(beams, 3), beams, cache_mode=cache_mode)
            for cache_mode in ("shared", "expanded")
        )
        assert shared.items.tolist() == expanded.items.tolist()
        torch.testing.assert_close(shared.log_probability, expanded.log_probability, rtol=1e-5, atol=1e-4)


def test_a_catalogue_with_a_beam_for_each_title_takes_two_passes(llm: PreTrainedModel, tree: TitleTree) -> None:
    rows = []
    handle = llm.register_forward_pre_hook(lambda *_, **__: rows.append(1))
    beam_search(llm, *prompts([3, 6]), tree, top_n=4, beams=10, cache_mode="shared")
    assert len(rows) == 2
    beam_search(llm, *prompts([3, 6]), tree, top_n=10, beams=10, cache_mode="expanded")
    # six tokens of the longest title after the prompt; its end is not read
    assert len(rows) == 2 + 1 + 6
    handle.remove()


@both
def test_a_beam_of_one_follows_the_best_prefix(llm: PreTrainedModel, cache_mode: Hold) -> None:
    embedded, mask = prompts([4])
    read = torch.cat([embedded, llm.get_input_embeddings()(torch.tensor([[5]]))], dim=1)
    following = llm(inputs_embeds=read).logits[0, -1].tolist()
    likely, unlikely = (6, 8) if following[6] > following[8] else (8, 6)
    # the better first step leads to a title so long that the other one is far more probable
    titles = [[5, unlikely], [5, likely, *range(20, 30)]]
    tree = TitleTree.of(titles, END)
    truth = brute_force(llm, embedded[0], titles)
    assert truth[0] > truth[1]
    assert beam_search(llm, embedded, mask, tree, top_n=1, beams=1, cache_mode=cache_mode).items.item() == 1
    assert beam_search(llm, embedded, mask, tree, top_n=1, beams=2, cache_mode=cache_mode).items.item() == 0


@both
def test_neither_the_batch_nor_padding_matters(llm: PreTrainedModel, tree: TitleTree, cache_mode: Hold) -> None:
    lengths = [3, 6, 4, 1]
    embedded, mask = prompts(lengths, width=9)
    together = beam_search(llm, embedded, mask, tree, top_n=3, beams=4, cache_mode=cache_mode)
    for row, length in enumerate(lengths):
        alone = beam_search(
            llm, embedded[row : row + 1, -length:], mask[row : row + 1, -length:], tree, 3, 4, cache_mode=cache_mode
        )
        assert alone.items[0].tolist() == together.items[row].tolist()
        torch.testing.assert_close(alone.log_probability[0], together.log_probability[row], rtol=1e-5, atol=1e-5)


def test_ties_fall_to_the_smaller_id(llm: PreTrainedModel) -> None:
    flat = LlamaForCausalLM(llm.config)
    nn.init.zeros_(flat.lm_head.weight)
    titles = [[9, 4], [8], [9], [7], [8], [3, 3]]
    ranking = beam_search(flat, *prompts([3, 5]), TitleTree.of(titles, END), top_n=6, beams=6)
    assert ranking.items.tolist() == [[1, 2, 3, 4, 0, 5]] * 2
    # each of the 60 tokens has probability 1/60
    ends = torch.tensor([2.0, 2, 2, 2, 3, 3]) * -torch.tensor(60.0).log()
    torch.testing.assert_close(ranking.log_probability, ends.expand(2, -1))
    few = beam_search(flat, *prompts([3, 5]), TitleTree.of(titles, END), top_n=2, beams=3)
    assert few.items.tolist() == [[1, 2]] * 2


def test_items_of_one_title_stand_together(llm: PreTrainedModel, tree: TitleTree) -> None:
    ranking = beam_search(llm, *prompts([5]), tree, top_n=10, beams=10)
    items = ranking.items[0].tolist()
    assert items.index(6) == items.index(1) + 1
    assert ranking.log_probability[0, items.index(6)] == ranking.log_probability[0, items.index(1)]


@both
def test_each_prompt_keeps_its_own_gate(cache_mode: Hold, tree: TitleTree, llm: PreTrainedModel) -> None:
    fresh = LlamaForCausalLM(llm.config)
    fresh.load_state_dict(llm.state_dict())
    adapters = inject(fresh, LoraSettings(rank=8, experts=4, alpha=16.0))
    torch.manual_seed(4)
    for name, parameter in adapters.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.4)
    lengths, weights = [3, 6, 4], torch.eye(4)[:3]
    embedded, mask = prompts(lengths)

    def rank(rows: slice, seen: int) -> tuple[Tensor, Tensor]:
        def gate(sequences: Tensor):  # type: ignore[no-untyped-def]
            return adapters.scope(weights[rows][sequences])

        ranking = beam_search(
            adapters.model, embedded[rows, -seen:], mask[rows, -seen:], tree, 4, 5, gate=gate, cache_mode=cache_mode
        )
        scores = score_all(
            adapters.model, embedded[rows, -seen:], mask[rows, -seen:], tree, gate=gate, cache_mode=cache_mode
        )
        torch.testing.assert_close(ranking.log_probability, scores.gather(1, ranking.items), rtol=1e-5, atol=1e-4)
        return scores, ranking.items

    together, items = rank(slice(None), 6)
    for row, length in enumerate(lengths):
        alone, own = rank(slice(row, row + 1), length)
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-4)
        assert own[0].tolist() == items[row].tolist()
    assert (together - score_all(llm, embedded, mask, tree)).abs().max() > 0.1


def test_the_mode_is_left_as_it_was_and_nothing_is_recorded(llm: PreTrainedModel, tree: TitleTree) -> None:
    llm.train()
    ranking = beam_search(llm, *prompts([3]), tree, top_n=2, beams=2)
    assert llm.training
    assert not ranking.log_probability.requires_grad
    llm.eval()


@pytest.mark.parametrize(("top_n", "beams"), [(0, 4), (11, 20), (5, 4)])
def test_a_ranking_that_cannot_be(llm: PreTrainedModel, tree: TitleTree, top_n: int, beams: int) -> None:
    with pytest.raises(ConfigError, match="must be"):
        beam_search(llm, *prompts([3]), tree, top_n, beams)


def test_models_and_prompts_that_cannot_be_searched(llm: PreTrainedModel, tree: TitleTree) -> None:
    embedded, mask = prompts([3, 5])
    with pytest.raises(ModelError, match="no language-model head"):
        beam_search(LlamaModel(llm.config), embedded, mask, tree, 1, 1)
    with pytest.raises(ValueError, match="on the left"):
        beam_search(llm, embedded, mask.flip(1), tree, 1, 1)
    for search in (
        lambda model: beam_search(model, embedded, mask, tree, 1, 1),
        lambda m: score_all(m, embedded, mask, tree),
    ):
        broken = LlamaForCausalLM(llm.config)
        nn.init.constant_(broken.lm_head.weight, float("nan"))
        with pytest.raises(TrainingFailed, match="not finite"):
            search(broken)


def test_logits_are_normalised_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(5, 2, 7, generator=torch.Generator().manual_seed(1)).bfloat16()
    copied, real = list[int](), Tensor.float
    monkeypatch.setattr(decoding, "_LOGITS", 2 * 2 * 7)
    monkeypatch.setattr(Tensor, "float", lambda self: (copied.append(self.numel()), real(self))[1])
    found = decoding._log_totals(logits)
    assert copied == [28, 28, 14]
    torch.testing.assert_close(found, real(logits).exp().sum(dim=2).log(), rtol=1e-5, atol=1e-5)
