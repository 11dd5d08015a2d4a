"""A training that is no longer made of numbers ends early, and is never saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.core.errors import TrainingFailed
from src.core.finite import CHECK_EVERY
from src.core.training import LoopSettings, fit

STEPS = 4 * CHECK_EVERY


class Slope(nn.Module):
    """A loss that falls with its weight, a minute a step; the slope of step ``bad``, counted from 1, is ``value``."""

    def __init__(self, bad: int = 0, value: float = math.nan, seen_in_the_loss: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.bad, self.value, self.seen, self.steps, self.now = bad, value, seen_in_the_loss, 0, 0.0

    def loss(self, rows: Tensor) -> Tensor:
        """Mean over these rows."""
        self.steps, self.now = self.steps + 1, self.now + 60
        if self.steps != self.bad:
            return -self.weight
        if self.seen:
            return self.value * self.weight
        weight = self.weight * 1
        weight.register_hook(lambda gradient: gradient * self.value)
        return -weight


class Saved:
    """Remembers after how many steps each state was saved, and that all of it was finite."""

    def __init__(self) -> None:
        self.steps = list[int]()

    def load(self) -> Mapping[str, Any] | None:
        """Nothing."""
        return None

    def save(self, state: Mapping[str, Any]) -> None:
        """Look at a state."""
        for name in ("loss", "best_state"):
            assert _finite(state["progress"][name]), name
        assert _finite(state["module"])
        assert _finite(state["optimiser"])
        self.steps.append(state["progress"]["steps"])


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    if isinstance(value, Mapping):
        return all(_finite(part) for part in value.values())
    return all(_finite(part) for part in value) if isinstance(value, list) else True


def train(
    model: Slope, saved: Saved, minutes: float = 1.0, clip: float = 0.0, evaluated: list[int] | None = None
) -> None:
    """Two epochs of `STEPS` steps."""

    def evaluate() -> dict[str, float]:
        if evaluated is not None:
            evaluated.append(model.steps)
        return {"score": 1.0}

    fit(
        model,
        model,
        torch.optim.Adam(model.parameters(), lr=0.1),
        LoopSettings(epochs=2, batch_size=1, monitor="score", checkpoint_minutes=minutes, gradient_clip=clip),
        STEPS,
        evaluate,
        torch.Generator().manual_seed(0),
        checkpoint=saved,
        clock=lambda: model.now,
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("step", [1, 2, CHECK_EVERY, CHECK_EVERY + 1, STEPS])
def test_a_state_that_is_not_finite_is_never_saved(step: int, bad: float) -> None:
    saved = Saved()
    with pytest.raises(TrainingFailed, match=f"epoch 1, at or before its step {step},"):
        train(Slope(step, bad, seen_in_the_loss=False), saved)
    assert saved.steps == list(range(1, step))


@pytest.mark.parametrize(
    ("step", "seen"), [(1, CHECK_EVERY), (CHECK_EVERY, CHECK_EVERY), (CHECK_EVERY + 1, 2 * CHECK_EVERY)]
)
def test_a_loss_that_is_not_finite_is_seen_within_a_few_steps(step: int, seen: int) -> None:
    model = Slope(step)
    with pytest.raises(TrainingFailed, match=f"training loss of epoch 1, at or before its step {seen}, is nan: lower"):
        train(model, Saved(), minutes=0)
    assert model.steps == seen


def test_a_gradient_norm_that_is_not_finite_is_told_as_such() -> None:
    model = Slope(2, math.inf, seen_in_the_loss=False)
    with pytest.raises(TrainingFailed, match="gradient norm of epoch 1, at or before its step 2, is inf: lower"):
        train(model, Saved(), clip=1.0)


def test_bad_weights_after_an_epochs_last_step_are_not_evaluated() -> None:
    evaluated = list[int]()
    with pytest.raises(TrainingFailed, match="a weight of weight is not finite in epoch 2"):
        train(Slope(2 * STEPS, seen_in_the_loss=False), Saved(), minutes=0, evaluated=evaluated)
    assert evaluated == [STEPS]


def test_a_sound_training_is_saved_as_ever() -> None:
    saved = Saved()
    train(Slope(), saved)
    assert saved.steps == [*range(1, STEPS + 1), STEPS, *range(STEPS + 1, 2 * STEPS + 1), 2 * STEPS]
