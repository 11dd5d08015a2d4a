"""The one training loop: epochs, accumulation, early stopping and the best state live here and nowhere else.

Student, teacher and distillation each supply an `Objective`; the loop knows nothing of what it trains.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, fields
from typing import Annotated, Any, Protocol

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from src.core.checkpoints import Checkpoint, NoCheckpoint, State, restore, snapshot
from src.core.data_utils import shuffled_batches
from src.core.errors import OutOfMemory, StopTraining, TrainingFailed
from src.core.logging import get_logger
from src.core.settings import STRICT

_log = get_logger(__name__)

NO_CHECKPOINT = NoCheckpoint()

#: ``batches(rows, size, generator, device)``: the row numbers of an epoch's steps, each row once
Batches = Callable[[int, int, torch.Generator, torch.device], Iterator[Tensor]]

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
    adapt_micro_batch: Annotated[
        bool, Field(description="out of memory halves the rows per forward pass instead of ending the training")
    ] = False


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
class _Progress:
    """How far a fit is: everything but the tensors that module, optimiser and streams hold themselves."""

    epoch: int = 0
    steps: int = 0
    stale: int = 0
    seconds: float = 0.0
    micro_batch_size: int = 0
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_state: State = field(default_factory=dict)

    def best_metrics(self) -> dict[str, float]:
        """Metrics of the best epoch so far."""
        return self.history[self.best_epoch - 1]

    def judge(self, metrics: dict[str, float], monitor: str, module: nn.Module) -> None:
        """Take an epoch's metrics in, and the module's state when it is the best so far."""
        self.epoch += 1
        self.history.append(metrics)
        if self.best_epoch == 0 or metrics[monitor] > self.best_metrics()[monitor]:
            self.best_epoch, self.stale, self.best_state = self.epoch, 0, snapshot(module)
        else:
            self.stale += 1


@plain_dataclass(frozen=True, eq=False)
class _State:
    """What a fit changes besides its progress; `torch`'s global stream drives dropout."""

    module: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler | None
    streams: Sequence[torch.Generator]
    device: torch.device

    def save(self, progress: _Progress) -> dict[str, Any]:
        """As one mapping, from which the fit goes on to the last bit."""
        return {
            "progress": {item.name: getattr(progress, item.name) for item in fields(progress)},
            "module": snapshot(self.module),
            "optimiser": self.optimiser.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "streams": [stream.get_state() for stream in self.streams],
            "global_stream": torch.get_rng_state(),
            "device_stream": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def load(self, saved: Mapping[str, Any]) -> _Progress:
        """Put everything back."""
        restore(self.module, saved["module"])
        self.optimiser.load_state_dict(saved["optimiser"])
        if self.schedule is not None:
            self.schedule.load_state_dict(saved["schedule"])
        for stream, state in zip(self.streams, saved["streams"], strict=True):
            stream.set_state(state)
        torch.set_rng_state(saved["global_stream"])
        if self.device.type == "cuda" and saved["device_stream"] is not None:
            torch.cuda.set_rng_state(saved["device_stream"], self.device)
        return _Progress(**saved["progress"])


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
    checkpoint: Checkpoint = NO_CHECKPOINT,
    streams: Sequence[torch.Generator] = (),
    batches: Batches = shuffled_batches,
) -> FitResult:
    """Train ``module`` and leave it in its best evaluated state.

    ``evaluate`` returns validation metrics (higher is better for ``settings.monitor``); it is called in eval mode
    without gradients after every epoch. ``generator`` orders the rows, in the way of ``batches``; ``streams`` are the
    other generators that the objective draws from. After each epoch the whole state is saved to ``checkpoint``, and
    only then reported, so that a report which got lost is made again: a fit that finds a saved state reports its epochs
    once more and goes on to the same trajectory. ``report`` may raise `StopTraining`.

    Raises ``TrainingFailed`` when a loss or the monitored metric is not finite, ``OutOfMemory`` when the device is out
    of memory, ``ArtefactError`` when the saved state is damaged or belongs to another training.
    """
    device = next(module.parameters()).device
    state = _State(module, optimiser, schedule, (generator, *streams), device)
    progress, stopped = _Progress(micro_batch_size=settings.micro_batch_size), False
    if (saved := checkpoint.load()) is not None:
        progress = state.load(saved)
    count = _Step(objective, optimiser, settings, progress, schedule, on_step)
    count.repeat(progress.steps)
    try:
        for epoch, metrics in enumerate(progress.history, start=1):
            report(epoch, metrics)
        while progress.epoch < settings.epochs and progress.stale < settings.patience:
            start = time.perf_counter()
            loss = _train_epoch(module, count, train_rows, batches(train_rows, settings.batch_size, generator, device))
            metrics = _evaluate(module, evaluate, loss, progress.epoch + 1, settings.monitor)
            progress.judge(metrics, settings.monitor, module)
            shown = ", ".join(f"{name} {value:.5g}" for name, value in metrics.items())
            _log.debug("epoch %d: %s", progress.epoch, shown)
            progress.seconds += time.perf_counter() - start
            checkpoint.save(state.save(progress))
            report(progress.epoch, metrics)
    except StopTraining:
        stopped = True
    restore(module, progress.best_state)
    module.eval()
    return FitResult(
        best_epoch=progress.best_epoch,
        best_metrics=progress.best_metrics(),
        history=progress.history,
        epochs=progress.epoch,
        steps=progress.steps,
        rows_trained=progress.epoch * train_rows,
        seconds=progress.seconds,
        stopped=stopped,
    )


def _train_epoch(
    module: nn.Module, step: Callable[[Tensor], Tensor], train_rows: int, batches: Iterator[Tensor]
) -> float:
    """One pass over the rows; returns their mean loss."""
    module.train()
    mean = torch.zeros((), device=next(module.parameters()).device)
    for rows in batches:
        mean += step(rows) * (len(rows) / train_rows)
    return float(mean)


@plain_dataclass
class _Step:
    """One optimiser step, the schedule's step and the caller's hook; counts into the progress."""

    objective: Objective
    optimiser: torch.optim.Optimizer
    settings: LoopSettings
    progress: _Progress
    schedule: torch.optim.lr_scheduler.LRScheduler | None
    hook: Callable[[], None] | None

    def __call__(self, rows: Tensor) -> Tensor:
        """Train on these rows; returns the detached mean loss."""
        loss = self._within_memory(rows)
        self.progress.steps += 1
        if self.schedule is not None:
            self.schedule.step()
        self.repeat(1)
        return loss

    def repeat(self, steps: int) -> None:
        """Tell the hook of steps."""
        if self.hook is not None:
            for _ in range(steps):
                self.hook()

    def _within_memory(self, rows: Tensor) -> Tensor:
        """A step in as few forward passes as the device has memory for; the effective batch stays what it is."""
        while True:
            try:
                size = self.progress.micro_batch_size
                return train_step(self.objective, self.optimiser, rows, size, self.settings.gradient_clip)
            except torch.OutOfMemoryError as error:
                smaller = (size or len(rows)) // 2
                if not self.settings.adapt_micro_batch or smaller < 1:
                    raise OutOfMemory(f"the device is out of memory: {error}; lower the batch size") from error
                reason = str(error).split(". ")[0]
            # outside the handler: the exception would keep the failed step's tensors alive
            _log.warning("out of memory (%s): going on with %d rows per forward pass, same batch", reason, smaller)
            self.progress.micro_batch_size = smaller
            self.optimiser.zero_grad(set_to_none=True)
            gc.collect()
            if rows.device.type == "cuda":
                torch.cuda.empty_cache()


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
