"""The one loop, on models small enough to follow by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from src.core.errors import StopTraining, TrainingFailed
from src.core.training import FitResult, LoopSettings, Report, fit, silent, train_step


class Scalar(nn.Module):
    """One parameter."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))


class Distance:
    """Mean over rows of (value − data)² / 2: the gradient is value − mean(data)."""

    def __init__(self, model: Scalar, data: list[float]) -> None:
        self.model, self.data, self.seen = model, torch.tensor(data), list[int]()

    def loss(self, rows: Tensor) -> Tensor:
        """Mean over these rows."""
        self.seen.extend(rows.tolist())
        return ((self.model.value - self.data[rows]) ** 2).mean() / 2


def run_fit(
    model: Scalar,
    objective: Any,
    scores: list[float],
    rows: int = 4,
    report: Report = silent,
    **settings: Any,
) -> FitResult:
    """Fit with plain gradient descent of rate 1; epoch e is scored ``scores[e - 1]``."""
    values = iter(scores)
    return fit(
        model,
        objective,
        torch.optim.SGD(model.parameters(), lr=1.0),
        LoopSettings(**{"epochs": len(scores), "batch_size": 4, "patience": 99, "monitor": "score", **settings}),
        rows,
        lambda: {"score": next(values)},
        torch.Generator().manual_seed(0),
        report,
    )


class Climb:
    """A loss whose gradient is −1: plain descent of rate 1 adds one each step."""

    def __init__(self, model: Scalar) -> None:
        self.model = model

    def loss(self, rows: Tensor) -> Tensor:
        """−value."""
        return -self.model.value


def test_the_best_epoch_is_restored_and_not_the_last() -> None:
    model = Scalar()
    result = run_fit(model, Climb(model), [0.1, 0.5, 0.3, 0.5])
    assert model.value.item() == 2.0  # after epoch 2; epoch 4 is not better, only as good
    assert (result.best_epoch, result.epochs, result.steps) == (2, 4, 4)
    assert result.best_metrics["score"] == 0.5
    assert [row["score"] for row in result.history] == [0.1, 0.5, 0.3, 0.5]
    assert not model.training


def test_train_loss_of_an_epoch_is_the_mean_over_its_rows() -> None:
    """Rows 0, 0, 0, 6 in batches of 3 and 1 without learning: (0 + 0 + 0 + 18) / 4, whatever the batches."""
    model = Scalar()
    objective = Distance(model, [0.0, 0.0, 0.0, 6.0])
    result = fit(
        model,
        objective,
        torch.optim.SGD(model.parameters(), lr=0.0),
        LoopSettings(epochs=2, batch_size=3, monitor="score"),
        4,
        lambda: {"score": 1.0},
        torch.Generator().manual_seed(0),
    )
    assert [row["train_loss"] for row in result.history] == [18 / 4, 18 / 4]
    assert sorted(objective.seen) == sorted([0, 1, 2, 3] * 2)
    assert (result.steps, result.rows_trained) == (4, 8)


def test_patience_counts_evaluations_without_a_better_one() -> None:
    model = Scalar()
    result = run_fit(model, Climb(model), [0.5, 0.4, 0.6, 0.6, 0.1, 0.9], patience=2)
    assert (result.epochs, result.best_epoch) == (5, 3)
    assert not result.stopped


def test_a_report_can_stop_the_loop_and_the_epoch_counts() -> None:
    model, reported = Scalar(), list[tuple[int, float]]()

    def report(epoch: int, metrics: Mapping[str, float]) -> None:
        reported.append((epoch, metrics["score"]))
        if epoch == 2:
            raise StopTraining

    result = run_fit(model, Climb(model), [0.1, 0.2, 0.3], report=report)
    assert reported == [(1, 0.1), (2, 0.2)]
    assert result.stopped
    assert (result.epochs, result.best_epoch, model.value.item()) == (2, 2, 2.0)


def test_an_error_in_a_report_is_not_swallowed() -> None:
    model = Scalar()

    def report(epoch: int, metrics: Mapping[str, float]) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run_fit(model, Climb(model), [0.1], report=report)


@pytest.mark.parametrize("micro", [1, 2, 3, 5])
def test_accumulation_equals_the_whole_batch(micro: int) -> None:
    """Descent of rate 1 lands on the batch's mean, 15 / 5, in one step; parts of unequal size weigh by their rows."""
    data = [1.0, 2.0, 3.0, 4.0, 5.0]
    model = Scalar()
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    loss = train_step(Distance(model, data), optimiser, torch.arange(5), micro)
    assert model.value.item() == pytest.approx(15 / 5)
    assert float(loss) == pytest.approx((1 + 4 + 9 + 16 + 25) / 5 / 2)


def test_gradients_do_not_pile_up_between_steps() -> None:
    model = Scalar()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    for expected in (2.0, 3.0, 3.5):  # halfway to 4 each time
        train_step(Distance(model, [4.0]), optimiser, torch.tensor([0]))
        assert model.value.item() == expected


def test_clipping_bounds_the_gradient_norm() -> None:
    model = Scalar()
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    train_step(Distance(model, [10.0]), optimiser, torch.tensor([0]), clip=0.25)
    assert model.value.item() == pytest.approx(0.25)


class _BadLoss:
    def __init__(self, model: Scalar, value: float) -> None:
        self.model, self.value = model, value

    def loss(self, rows: Tensor) -> Tensor:
        """Not finite."""
        return self.model.value * self.value


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_fails_the_run(bad: float) -> None:
    model = Scalar(1.0)
    with pytest.raises(TrainingFailed, match="training loss of epoch 1"):
        run_fit(model, _BadLoss(model, bad), [0.1, 0.2])


def test_a_single_bad_batch_among_good_ones_fails_the_epoch() -> None:
    model = Scalar()
    objective = Distance(model, [0.0, 0.0, math.nan, 0.0])
    with pytest.raises(TrainingFailed, match="nan"):
        run_fit(model, objective, [0.1], batch_size=1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_metric_that_is_not_finite_fails_the_run(bad: float) -> None:
    model = Scalar()
    with pytest.raises(TrainingFailed, match="score of epoch 2"):
        run_fit(model, Climb(model), [0.1, bad])


def test_a_monitor_that_is_not_evaluated_is_named() -> None:
    model = Scalar()
    with pytest.raises(TrainingFailed, match="ndcg_7"):
        run_fit(model, Climb(model), [0.1], monitor="ndcg_7")


def test_evaluation_sees_eval_mode_and_no_gradients() -> None:
    model, seen = Scalar(), list[tuple[bool, bool]]()

    def evaluate() -> dict[str, float]:
        seen.append((model.training, torch.is_grad_enabled()))
        return {"score": 1.0}

    def loss(rows: Tensor) -> Tensor:
        assert model.training
        return -model.value

    objective = Climb(model)
    objective.loss = loss  # type: ignore[method-assign]
    fit(
        model,
        objective,
        torch.optim.SGD(model.parameters(), lr=1.0),
        LoopSettings(epochs=2, monitor="score"),
        3,
        evaluate,
        torch.Generator(),
    )
    assert seen == [(False, False)] * 2


def test_frozen_parameters_are_neither_copied_nor_lost() -> None:
    model = Scalar()
    model.frozen = nn.Parameter(torch.tensor(5.0), requires_grad=False)
    run_fit(model, Climb(model), [0.9, 0.1])
    assert (model.value.item(), model.frozen.item()) == (1.0, 5.0)


def test_a_schedule_moves_once_a_step() -> None:
    model = Scalar()
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 / 2**step)
    calls = list[int]()
    fit(
        model,
        Climb(model),
        optimiser,
        LoopSettings(epochs=1, batch_size=1, monitor="score"),
        3,
        lambda: {"score": 1.0},
        torch.Generator(),
        on_step=lambda: calls.append(1),
        schedule=schedule,
    )
    assert model.value.item() == 1 + 1 / 2 + 1 / 4
    assert len(calls) == 3


class Tabled(Scalar):
    """With a buffer that training writes into, and a table beside it that is not saved with the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("table", torch.zeros(5), persistent=False)


class Copies(TorchDispatchMode):
    """Counts the copies of tensors by their shape."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As without it."""
        if func is torch.ops.aten.clone.default:
            self.found[tuple(args[0].shape)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("adapts", "copies"), [(True, 2), (False, 0)])
def test_a_step_that_may_be_repeated_copies_what_it_writes_into_and_no_table(adapts: bool, copies: int) -> None:
    model = Tabled()
    with Copies() as counted:  # two steps of one epoch
        run_fit(model, Distance(model, [1.0] * 8), [0.1], rows=8, adapt_micro_batch=adapts)
    with Copies() as without:  # what the epoch's best state costs anyway
        run_fit(model, Distance(model, [1.0] * 8), [0.1], rows=8)
    assert counted.found[3,] - without.found[3,] == copies
    assert counted.found[5,] == 0
