"""The one training loop: epochs, accumulation, early stopping and the best state live here and nowhere else.

Student, teacher and distillation each supply an `Objective`; the loop knows nothing of what it trains.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import Annotated, Protocol

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from src.core.checkpoints import State, restore, snapshot
from src.core.data_utils import shuffled_batches
from src.core.errors import StopTraining, TrainingFailed
from src.core.logging import get_logger
from src.core.settings import STRICT

_log = get_logger(__name__)

#: ``report(epoch, metrics)``: the only thread into a training function; epoch counts from 1.
Report = Callable[[int, Mapping[str, float]], None]


def silent(epoch: int, metrics: Mapping[str, float]) -> None:
    """A report that nobody reads."""


@dataclass(frozen=True, config=STRICT)
class LoopSettings:
    """How long and in what steps to train."""

    epochs: Annotated[int, Field(ge=1, description="passes over the training rows at most")] = 30
    batch_size: Annotated[int, Field(ge=1, description="rows per optimiser step")] = 256
    micro_batch_size: Annotated[
        int, Field(ge=0, description="rows per forward pass (gradient accumulation); 0: the whole batch at once")
    ] = 0
    patience: Annotated[
        int, Field(ge=1, description="evaluations without a better monitored metric before training stops")
    ] = 5
    monitor: Annotated[str, Field(min_length=1, description="validation metric that chooses the best epoch")] = (
        "ndcg_20"
    )
    gradient_clip: Annotated[float, Field(ge=0, description="largest gradient norm; 0: no clipping")] = 0.0


class Objective(Protocol):
    """What a stage wants minimised."""

    def loss(self, rows: Tensor) -> Tensor:
        """Mean loss over the training rows with these numbers (``[B]`` int64 on the training device)."""


@plain_dataclass(frozen=True)
class FitResult:
    """What a fit did. ``history`` holds each evaluated epoch's metrics, ``train_loss`` among them."""

    best_epoch: int
    best_metrics: dict[str, float]
    history: list[dict[str, float]]
    epochs: int
    steps: int
    rows_trained: int
    seconds: float
    stopped: bool = False


@plain_dataclass
class _Best:
    value: float = -math.inf
    epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    state: State = field(default_factory=dict)


def _micro_batches(rows: Tensor, size: int) -> Iterator[tuple[Tensor, float]]:
    """Parts of a batch, each with its share of the batch's mean loss."""
    for part in rows.split(size or len(rows)):
        yield part, len(part) / len(rows)


def train_step(
    objective: Objective, optimiser: torch.optim.Optimizer, rows: Tensor, micro_batch_size: int = 0, clip: float = 0.0
) -> Tensor:
    """One optimiser step on these rows; returns the detached mean loss."""
    optimiser.zero_grad(set_to_none=True)
    total = torch.zeros((), device=rows.device)
    for part, share in _micro_batches(rows, micro_batch_size):
        loss = objective.loss(part) * share
        loss.backward()
        total = total + loss.detach()
    if clip > 0:
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, clip)
    optimiser.step()
    return total


def fit(
    module: nn.Module,
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    settings: LoopSettings,
    train_rows: int,
    evaluate: Callable[[], Mapping[str, float]],
    generator: torch.Generator,
    report: Report = silent,
    on_step: Callable[[], None] | None = None,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> FitResult:
    """Train ``module`` and leave it in its best evaluated state.

    ``evaluate`` returns validation metrics (higher is better for ``settings.monitor``); it is called in eval mode
    without gradients after every epoch. ``report`` may raise `StopTraining`.

    Raises ``TrainingFailed`` when a loss or the monitored metric is not finite, and when the device is out of memory.
    """
    start, best, history = time.perf_counter(), _Best(), list[dict[str, float]]()
    device = next(module.parameters()).device
    steps = stale = epoch = 0
    stopped = False
    for epoch in range(1, settings.epochs + 1):
        module.train()
        mean = torch.zeros((), device=device)
        for rows in shuffled_batches(train_rows, settings.batch_size, generator, device):
            mean += _guarded_step(objective, optimiser, rows, settings) * (len(rows) / train_rows)
            steps += 1
            if schedule is not None:
                schedule.step()
            if on_step is not None:
                on_step()
        metrics = _evaluate(module, evaluate, float(mean), epoch, settings.monitor)
        history.append(metrics)
        _log.debug("epoch %d: %s", epoch, ", ".join(f"{name} {value:.5g}" for name, value in metrics.items()))
        if metrics[settings.monitor] > best.value:
            best, stale = _Best(metrics[settings.monitor], epoch, metrics, snapshot(module)), 0
        else:
            stale += 1
        try:
            report(epoch, metrics)
        except StopTraining:
            stopped = True
            break
        if stale >= settings.patience:
            break
    restore(module, best.state)
    module.eval()
    seconds = time.perf_counter() - start
    return FitResult(best.epoch, best.metrics, history, epoch, steps, epoch * train_rows, seconds, stopped)


def _guarded_step(
    objective: Objective, optimiser: torch.optim.Optimizer, rows: Tensor, settings: LoopSettings
) -> Tensor:
    try:
        return train_step(objective, optimiser, rows, settings.micro_batch_size, settings.gradient_clip)
    except torch.cuda.OutOfMemoryError as error:
        raise TrainingFailed(f"the device is out of memory: {error}; lower the batch size") from error


def _evaluate(
    module: nn.Module, evaluate: Callable[[], Mapping[str, float]], loss: float, epoch: int, monitor: str
) -> dict[str, float]:
    if not math.isfinite(loss):
        raise TrainingFailed(f"the training loss of epoch {epoch} is {loss}; lower the learning rate or the weights")
    module.eval()
    with torch.no_grad():
        metrics = {"train_loss": loss, **evaluate()}
    if monitor not in metrics:
        raise TrainingFailed(f"monitor = {monitor!r} is not among the evaluated metrics {sorted(metrics)}")
    if not math.isfinite(metrics[monitor]):
        raise TrainingFailed(f"{monitor} of epoch {epoch} is {metrics[monitor]}")
    return metrics
