"""The transformer computes its last place by a shorter way; the long way must agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from src.student.architectures.transformer import Transformer, TransformerSettings

V, L = 11, 6


def model_of(**changes: Any) -> Transformer:
    """Every parameter random, the distances' biases among them."""
    options: dict[str, Any] = {"width": 12, "heads": 3, "blocks": 2, "window": L, **changes}
    torch.manual_seed(1)
    model = Transformer(TransformerSettings(**options), V, L)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / 2)
    return model.eval()


def histories() -> tuple[torch.Tensor, torch.Tensor]:
    """One of every length 0..L."""
    length = torch.arange(L + 1)
    items = torch.randint(0, V, (L + 1, L), generator=torch.Generator().manual_seed(2))
    return items.masked_fill(torch.arange(L) >= length.unsqueeze(1), V), length


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_the_last_place_is_what_all_places_give_there(blocks: int, tied: bool) -> None:
    model = model_of(blocks=blocks, tied=tied)
    history, length = histories()
    everywhere = model.encode_all(history)
    last = everywhere[torch.arange(L + 1), length.clamp(min=1) - 1]
    assert torch.allclose(model.encode(history, length), last, atol=2e-5)
    extra = torch.randn(L + 1, L, 12)
    moved = model.encode_all(history, extra)[torch.arange(L + 1), length.clamp(min=1) - 1]
    assert torch.allclose(model.encode(history, length, extra), moved, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 3])
def test_later_items_do_not_change_earlier_places(blocks: int) -> None:
    model = model_of(blocks=blocks)
    history = torch.arange(L).unsqueeze(0)
    before = model.encode_all(history)
    for place in range(1, L):
        later = history.clone()
        later[0, place:] = (later[0, place:] + 3) % V
        after = model.encode_all(later)
        assert torch.allclose(after[0, :place], before[0, :place], atol=1e-6)
        assert not torch.allclose(after[0, place], before[0, place], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 3])
def test_every_place_is_what_it_would_be_the_last_of(blocks: int) -> None:
    model = model_of(blocks=blocks)
    history = torch.arange(L).unsqueeze(0)
    everywhere = model.encode_all(history)[0]
    for length in range(1, L + 1):
        cut = history.masked_fill(torch.arange(L) >= length, V)
        assert torch.allclose(model.encode(cut, torch.tensor([length]))[0], everywhere[length - 1], atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 3])
def test_padding_is_read_by_no_real_place(blocks: int) -> None:
    model = model_of(blocks=blocks)
    history, length = histories()
    before = model.encode(history, length)[1:]
    model.item_embeddings.weight[V] += 50.0
    assert torch.equal(model.encode(history, length)[1:], before)
    narrow = model.encode(history[1:3, :2], length[1:3])
    assert torch.allclose(narrow, before[:2], atol=1e-6)


def test_both_ways_send_the_same_gradient() -> None:
    history, length = histories()
    history, length = history[1:], length[1:]
    gradients = []
    for whole in (False, True):
        model = model_of(blocks=2)
        found = model.encode_all(history)[torch.arange(L), length - 1] if whole else model.encode(history, length)
        found.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        if gradient is None or other is None:
            # the last query's key bias, which softmax does not see; the scorer is not asked here
            assert name.endswith(("attention.key.bias", "scorer.bias"))
            continue
        assert torch.allclose(gradient, other, atol=1e-4, rtol=1e-3), name


@torch.no_grad()
def test_order_counts() -> None:
    model = model_of(blocks=1)
    forward, backward = torch.arange(4).unsqueeze(0), torch.tensor([[2, 1, 0, 3]])
    length = torch.tensor([4])
    assert not torch.allclose(model.encode(forward, length), model.encode(backward, length), atol=1e-3)


def test_tied_rows_are_the_embeddings_and_are_saved_once() -> None:
    tied, free = model_of(tied=True), model_of(tied=False)
    assert tied.tied
    assert not free.tied
    assert tied.scorer.weight.data_ptr() == tied.item_embeddings.weight.data_ptr()
    assert set(free.state_dict()) - set(tied.state_dict()) == {"scorer.weight"}
    history, length = histories()
    logits = tied(history, length)
    expected = tied.encode(history, length) @ tied.item_embeddings.weight[:V].T + tied.scorer.bias
    assert torch.allclose(logits, expected)
    items = torch.tensor([[0, 4]] * (L + 1))
    assert torch.allclose(tied.score_items(tied.encode(history, length), items), logits.gather(1, items), atol=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"heads": 5}, {"blocks": 0}, {"feedforward": 0}, {"window": -1}, {"prior": "a b"}, {"prior_folds": 1}]
)
def test_a_wrong_setting_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TransformerSettings(**wrong)
