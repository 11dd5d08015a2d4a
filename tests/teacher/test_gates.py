"""Gates: a softmax over experts, whatever the user vector. The published numbers are checked in tests/golden."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from src.teacher.backbone.gates import (
    ConvolutionalRouter,
    LinearGate,
    MLPGate,
    build_gate,
    keep_largest,
    normalised_entropy,
)
from src.teacher.settings import GateSettings


@pytest.mark.parametrize("kind", ["convolutional", "linear", "mlp"])
@pytest.mark.parametrize(("batch", "width", "experts"), [(3, 64, 4), (1, 7, 3), (5, 1, 1)])
def test_every_gate_gives_a_softmax_at_any_width_and_number_of_experts(
    kind: str, batch: int, width: int, experts: int
) -> None:
    gate = build_gate(GateSettings(kind=kind), width, experts)  # type: ignore[arg-type]
    weights = gate(torch.randn(batch, width))
    assert weights.shape == (batch, experts)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(batch))


@pytest.mark.parametrize("kind", ["convolutional", "linear", "mlp"])
def test_a_users_weights_do_not_depend_on_the_batch_in_eval_mode(kind: str) -> None:
    gate = build_gate(GateSettings(kind=kind), 16, 4).eval()  # type: ignore[arg-type]
    users = torch.randn(6, 16)
    torch.testing.assert_close(gate(users)[2:3], gate(users[2:3]))


def test_linear_gate_by_hand() -> None:
    gate = LinearGate(2, 2)
    with torch.no_grad():
        gate.linear.weight.copy_(torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(gate(torch.tensor([[1.0, 5.0]])), torch.tensor([[3 / 4, 1 / 4]]))


def test_keep_largest_of_one_is_one_hot_and_of_two_a_softmax_over_probabilities() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.2]])
    assert keep_largest(weights, 1).tolist() == [[1.0, 0.0, 0.0]]
    first = 1 / (1 + math.exp(-0.2))
    torch.testing.assert_close(keep_largest(weights, 2), torch.tensor([[first, 1 - first, 0.0]]))


@pytest.mark.parametrize("gate", [LinearGate(4, 3, noise=0.5), MLPGate(4, 3, noise=0.5)])
def test_noise_is_drawn_in_training_only_unless_it_is_given(gate: nn.Module) -> None:
    user = torch.randn(2, 4)
    assert not torch.equal(gate.train()(user), gate(user))
    assert torch.equal(gate.eval()(user), gate(user))
    given = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    noisy, quiet = gate(user, noise=given), gate(user)
    assert noisy[0, 0] > quiet[0, 0]
    torch.testing.assert_close(noisy[1], quiet[1])


def test_linear_gate_drops_logits_in_training() -> None:
    gate = LinearGate(4, 64, dropout=0.5).train()
    with torch.no_grad():
        gate.linear.weight.fill_(1.0)
    weights = gate(torch.ones(1, 4))
    assert len(weights.unique()) == 2


def test_router_halves_the_signal_twice_and_averages_it() -> None:
    router = ConvolutionalRouter(4).eval()
    assert router.features(torch.randn(2, 9)).shape == (2, 64)
    assert [block.stride for block in router.blocks] == [1, 1, 1, 2, 1, 1, 2, 1, 1]


def test_normalised_entropy_by_hand() -> None:
    weights = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    torch.testing.assert_close(normalised_entropy(weights), torch.tensor([1.0, 0.0, 1 / 2]))
    assert normalised_entropy(torch.ones(2, 1)).tolist() == [1.0, 1.0]
