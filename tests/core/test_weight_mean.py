"""The running mean of the weights: by hand on one parameter, and what a training does with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from src.core.errors import ArtefactError, OutOfMemory
from src.core.training import FitResult, LoopSettings, fit
from src.core.weight_mean import WeightMean


class Climbing(nn.Module):
    """One parameter that plain descent of rate 1 raises by one each step, a frozen one and a buffer."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros((), dtype=dtype))
        self.frozen = nn.Parameter(torch.tensor(5.0), requires_grad=False)
        self.register_buffer("seen", torch.zeros(()))
        self.started_from = list[float]()

    def loss(self, rows: Tensor) -> Tensor:
        """−value; the gradient is −1."""
        self.started_from.append(self.value.item())
        self.seen += 1
        return -self.value


class Held:
    """A checkpoint that remembers what it was given, and gives back what it was made with."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self.state = state

    def load(self) -> Mapping[str, Any] | None:
        """What is held."""
        return self.state

    def save(self, state: Mapping[str, Any]) -> None:
        """Hold this."""
        self.state = state


def climb(model: Climbing, scores: list[float], ema: float, checkpoint: Held | None = None) -> FitResult:
    """A step an epoch; epoch e is scored ``scores[e - 1]`` and tells its value as a metric."""
    values = iter(scores)
    return fit(
        model,
        model,
        torch.optim.SGD([model.value], lr=1.0),
        LoopSettings(epochs=len(scores), batch_size=4, patience=99, monitor="score", ema=ema),
        4,
        lambda: {"score": next(values), "value": model.value.item(), "seen": float(model.seen)},
        torch.Generator().manual_seed(0),
        checkpoint=checkpoint or Held(),
    )


def test_the_mean_by_hand_decays_slowly_only_after_a_warm_up() -> None:
    """After steps 0, 1, 2 the weights are 1, 2, 3 and d is 1/10, 2/11, 3/12: the mean is 0.9, 1.8, 2.7."""
    result = climb(Climbing(), [0.1, 0.2, 0.3], ema=0.999)
    assert [row["value"] for row in result.history] == pytest.approx([0.9, 1.8, 2.7])


def test_the_decay_is_never_more_than_the_configured_one() -> None:
    """d is 1/10 and then 0.15: 0.9, and 0.15 · 0.9 + 0.85 · 2."""
    result = climb(Climbing(), [0.1, 0.2], ema=0.15)
    assert [row["value"] for row in result.history] == pytest.approx([0.9, 0.15 * 0.9 + 0.85 * 2])


def test_training_goes_on_from_the_weights_and_the_best_mean_is_left() -> None:
    model = Climbing()
    climb(model, [0.1, 0.9, 0.2], ema=0.999)
    assert model.started_from == [0, 1, 2]
    assert model.value.item() == pytest.approx(1.8)


def test_frozen_parameters_and_buffers_are_the_modules_own() -> None:
    model = Climbing()
    result = climb(model, [0.1, 0.2, 0.3], ema=0.999)
    assert [row["seen"] for row in result.history] == [1, 2, 3]
    assert (model.frozen.item(), model.seen.item()) == (5.0, 3.0)
    assert list(WeightMean(model, 0.9).state()) == ["value"]


def test_without_a_mean_the_weights_are_evaluated_and_a_checkpoint_holds_one_set() -> None:
    kept = Held()
    result = climb(Climbing(), [0.1, 0.2], ema=0.0, checkpoint=kept)
    assert [row["value"] for row in result.history] == [1, 2]
    assert kept.state is not None
    assert "mean" not in kept.state


def test_a_checkpoint_holds_both_sets() -> None:
    kept = Held()
    climb(Climbing(), [0.1, 0.2], ema=0.999, checkpoint=kept)
    assert kept.state is not None
    assert (kept.state["module"]["value"], kept.state["mean"]["value"]) == (2.0, pytest.approx(1.8))


def test_an_evaluation_that_fails_leaves_the_weights_in_the_module() -> None:
    model = Climbing()
    with pytest.raises(ZeroDivisionError):
        fit(
            model,
            model,
            torch.optim.SGD([model.value], lr=1.0),
            LoopSettings(epochs=1, monitor="score", ema=0.9),
            4,
            lambda: {"score": 1 / 0},
            torch.Generator(),
        )
    assert model.value.item() == 1.0


def test_no_memory_for_the_mean_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(torch, "_foreach_copy_", full)
    with pytest.raises(OutOfMemory, match="with a second set of weights .*set loop.ema to 0"):
        climb(Climbing(), [0.1], ema=0.9)
    monkeypatch.setattr(torch, "_foreach_lerp_", full)
    with pytest.raises(OutOfMemory, match="in the optimiser's step"):
        climb(Climbing(), [0.1], ema=0.9)


def test_a_checkpoint_without_the_mean_is_refused() -> None:
    kept = Held()
    climb(Climbing(), [0.1], ema=0.0, checkpoint=kept)
    with pytest.raises(ArtefactError, match="mean weights of another model"):
        climb(Climbing(), [0.1, 0.2], ema=0.9, checkpoint=kept)


def test_small_changes_of_half_precision_weights_are_not_lost() -> None:
    """bfloat16 has no number between 1 and 1.0078: a mean in it would stay at 1."""
    model = Climbing(torch.bfloat16)
    with torch.no_grad():
        model.value += 1
    mean = WeightMean(model, 0.999)
    with torch.no_grad():
        model.value += 1
    for _ in range(10):
        mean.update(10**6)
    assert mean.state()["value"].item() == pytest.approx(2 - 0.999**10)
    with mean.applied():
        assert model.value.dtype == torch.bfloat16
    assert model.value.item() == 2.0


@pytest.mark.parametrize("ema", [-0.1, 1.0, 1.5, float("nan")])
def test_a_decay_that_is_none_is_refused(ema: float) -> None:
    with pytest.raises(ValidationError, match="ema"):
        LoopSettings(ema=ema)
