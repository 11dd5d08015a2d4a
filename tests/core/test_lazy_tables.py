"""The running mean of a table of which a step moves a few rows, and when a large state is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.core import checkpoint_writer
from src.core.lazy_adam import LazyAdam, RowAdam, rows_alone
from src.core.training import LoopSettings, fit
from src.core.weight_mean import WeightMean

ROWS = torch.tensor([[0, 3], [3, 3], [5, 1], [0, 5], [2, 3], [3, 0]])


class Table(nn.Module):
    """Six rows, of which a step reads two, and a number that every step reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows, self.scale = nn.Embedding(6, 4, sparse=True), nn.Parameter(torch.ones(()))

    def loss(self, rows: Tensor) -> Tensor:
        """Of the rows that each training row reads."""
        return (self.scale * self.rows(ROWS[rows])).square().sum()


def moved(model: Table, optimiser: LazyAdam, step: int) -> None:
    """One step's gradients."""
    optimiser.zero_grad()
    model.loss(torch.tensor([step % 6])).backward()


def test_rows_move_as_torch_moves_them_to_the_bit() -> None:
    ours, torchs = Table(), Table()
    optimisers = RowAdam([ours.rows.weight], 0.1), torch.optim.SparseAdam([torchs.rows.weight], 0.1)
    for step in range(30):
        for model, optimiser in zip((ours, torchs), optimisers, strict=True):
            optimiser.zero_grad()
            model.loss(torch.tensor([step % 6, (step + 1) % 6])).backward()
            assert model.rows.weight.grad is not None
            model.rows.weight.grad = rows_alone(model.rows.weight.grad)
            optimiser.step()
        assert torch.equal(ours.rows.weight, torchs.rows.weight), step
    own, theirs = (optimiser.state_dict()["state"][0] for optimiser in optimisers)
    assert own["step"] == theirs["step"] == 30
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(own[name], theirs[name])


def test_a_lazy_mean_is_the_mean() -> None:
    model = Table()
    optimiser = LazyAdam([model.scale], [model.rows.weight], 0.1, 0.0)
    dense, lazy = WeightMean(model, 0.9), WeightMean(model, 0.9, [model.rows.weight])
    for step in range(30):
        moved(model, optimiser, step)
        lazy.begin()
        optimiser.step()
        for mean in (dense, lazy):
            mean.update(step)
        own = model.rows.weight.detach().clone()
        with dense.applied():
            want = model.rows.weight.detach().clone()
        with lazy.applied():
            assert torch.allclose(model.rows.weight, want, atol=1e-6), step
        assert torch.equal(model.rows.weight, own)


def test_a_lazy_mean_goes_on_from_its_state_and_looking_at_it_changes_nothing() -> None:
    states = []
    for looked_at in (False, True):
        model = Table()
        optimiser = LazyAdam([model.scale], [model.rows.weight], 0.1, 0.0)
        mean = WeightMean(model, 0.9, [model.rows.weight])
        for step in range(8):
            moved(model, optimiser, step)
            mean.begin()
            optimiser.step()
            mean.update(step)
            if looked_at:
                with mean.applied():
                    pass
                kept, mean = mean.state(), WeightMean(model, 0.9, [model.rows.weight])
                mean.load(kept)
        states.append(mean.state())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


class Kept:
    """A checkpoint that counts."""

    def __init__(self) -> None:
        self.epochs = list[int]()

    def load(self) -> Mapping[str, Any] | None:
        """Nothing."""
        return None

    def save(self, state: Mapping[str, Any]) -> None:
        """Note the epochs that are done."""
        self.epochs.append(state["progress"]["epoch"])


@pytest.mark.parametrize(
    ("small", "minutes", "saved"),
    [
        (10**9, 1.0, [1, 2, 3, 4, 5, 6]),  # a small state costs nothing
        (0, 1.0, [3, 6]),  # an epoch takes 25 seconds here
        (0, 0.0, [1, 2, 3, 4, 5, 6]),  # after each evaluation
    ],
)
def test_a_large_state_is_written_no_more_often_than_it_may_be(
    monkeypatch: pytest.MonkeyPatch, small: int, minutes: float, saved: list[int]
) -> None:
    monkeypatch.setattr(checkpoint_writer, "SMALL", small)
    model, now, kept = Table(), [0.0], Kept()

    def evaluate() -> dict[str, float]:
        now[0] += 25.0
        return {"score": now[0]}

    result = fit(
        model,
        model,
        LazyAdam([model.scale], [model.rows.weight], 0.1, 0.0),
        LoopSettings(epochs=6, batch_size=6, patience=9, monitor="score", checkpoint_minutes=minutes),
        6,
        evaluate,
        torch.Generator().manual_seed(0),
        checkpoint=kept,
        clock=lambda: now[0],
    )
    assert kept.epochs == saved
    assert result.seconds == 150


def test_an_epoch_that_was_not_saved_is_trained_again_to_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the report of epoch 5, saved after epoch 3: epochs 4 and 5 are reported with the values they had."""
    monkeypatch.setattr(checkpoint_writer, "SMALL", 0)
    reported: list[tuple[int, float]] = []
    held: list[Mapping[str, Any]] = []

    class Memory:
        def load(self) -> Mapping[str, Any] | None:
            return held[-1] if held else None

        def save(self, state: Mapping[str, Any]) -> None:
            held.append(torch.load(_written(state), weights_only=True))

    def run(die_in: int) -> list[dict[str, float]]:
        model, now = Table(), [0.0]

        def evaluate() -> dict[str, float]:
            now[0] += 25.0
            return {"score": -model.loss(torch.arange(6)).item()}

        def report(epoch: int, metrics: Mapping[str, float]) -> None:
            reported.append((epoch, metrics["score"]))
            if epoch == die_in:
                raise KeyboardInterrupt

        return fit(
            model, model, LazyAdam([model.scale], [model.rows.weight], 0.1, 0.0),
            LoopSettings(epochs=6, batch_size=2, patience=9, monitor="score", checkpoint_minutes=1.0, ema=0.9),
            6, evaluate, torch.Generator().manual_seed(0), report, checkpoint=Memory(), clock=lambda: now[0],
        ).history  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        run(die_in=5)
    assert [state["progress"]["epoch"] for state in held] == [3]
    run(die_in=0)
    assert [epoch for epoch, _ in reported] == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 6]
    assert reported[:5] == reported[5:10]


def _written(state: Mapping[str, Any]) -> Any:
    import io

    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    buffer.seek(0)
    return buffer
