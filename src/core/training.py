"""The one training loop: epochs, accumulation, early stopping and the best state live here and nowhere else.

Student, teacher and distillation each supply an `Objective`; the loop knows nothing of what it trains.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from src.core.checkpoint_writer import CheckpointWriter
from src.core.checkpoints import Checkpoint, NoCheckpoint, changing, restore
from src.core.data_utils import shuffled_batches
from src.core.errors import OutOfMemory, StopTraining, TrainingFailed
from src.core.finite import FiniteCheck
from src.core.fit_state import FitState, Progress, Randomness, Stream
from src.core.lazy_adam import LazyAdam, clip_gradients
from src.core.logging import get_logger
from src.core.loop_settings import LoopSettings as LoopSettings  # the loop and its settings are imported together
from src.core.memory import give_back, is_out_of_memory, torch_reason
from src.core.watching import TrainingObserver
from src.core.weight_mean import WeightMean, averaged, weight_mean

_log = get_logger(__name__)

NO_CHECKPOINT = NoCheckpoint()

#: ``batches(rows, size, generator, device)``: the row numbers of an epoch's steps, each row once
Batches = Callable[[int, int, torch.Generator, torch.device], Iterator[Tensor]]

#: ``report(epoch, metrics)``: the only thread into a training function; epoch counts from 1.
Report = Callable[[int, Mapping[str, float]], None]


def silent(epoch: int, metrics: Mapping[str, float]) -> None:
    """A report that nobody reads."""


class Objective(Protocol):
    """What a stage wants minimised."""

    def loss(self, rows: Tensor) -> Tensor:
        """Mean loss over the training rows with these numbers (``[B]`` int64 on the training device)."""


@dataclass(frozen=True)
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


def _micro_batches(rows: Tensor, size: int) -> Iterator[tuple[Tensor, float]]:
    """Parts of a batch, each with its share of the batch's mean loss."""
    for part in rows.split(size or len(rows)):
        yield part, len(part) / len(rows)


def train_step(
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    rows: Tensor,
    micro_batch_size: int = 0,
    clip: float = 0.0,
    mean: WeightMean | None = None,
    step: int = 0,
) -> Tensor:
    """One optimiser step on these rows, number ``step`` from 0 to the mean; returns the detached mean loss.

    Args:
        objective: gives the mean loss of some rows.
        optimiser: moves the weights.
        rows: row numbers ``[B]``.
        micro_batch_size: rows that are computed at once, their gradients summed; 0: all.
        clip: the largest norm of the gradient; 0: any.
        mean: keeps the mean of the weights; None where none is kept.
        step: the step's number.
    """
    loss = _accumulate(objective, optimiser, rows, micro_batch_size)
    _descend(optimiser, clip, mean, step)
    return loss


def _accumulate(objective: Objective, optimiser: torch.optim.Optimizer, rows: Tensor, micro_batch_size: int) -> Tensor:
    """The gradients of these rows' mean loss, and that loss, detached."""
    optimiser.zero_grad(set_to_none=True)
    total = torch.zeros((), device=rows.device)
    for part, share in _micro_batches(rows, micro_batch_size):
        loss = objective.loss(part) * share
        loss.backward()
        total = total + loss.detach()
    return total


def _descend(optimiser: torch.optim.Optimizer, clip: float, mean: WeightMean | None, step: int) -> Tensor | None:
    """The optimiser's step and the mean's; returns the gradient norm where clipping needs it."""
    norm = _clip(optimiser, clip)
    if mean is not None:
        mean.begin()
    optimiser.step()
    if mean is not None:
        mean.update(step)
    return norm


def _clip(optimiser: torch.optim.Optimizer, clip: float) -> Tensor | None:
    """Gradients of a norm of at most ``clip``; returns the norm before where clipping needs it."""
    if clip == 0:
        return None
    return clip_gradients([p for group in optimiser.param_groups for p in group["params"]], clip)


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
    streams: Sequence[Stream] = (),
    batches: Batches = shuffled_batches,
    clock: Callable[[], float] = time.perf_counter,
) -> FitResult:
    """Train ``module`` and leave it in its best evaluated state; with ``settings.ema`` that is the mean of its weights.

    ``evaluate`` returns validation metrics (higher is better for ``settings.monitor``); it is called in eval mode
    without gradients after every epoch. ``generator`` orders the rows, in the way of ``batches``, and nothing else
    draws from it; ``streams`` are the other ones that the objective draws from or counts in. The whole state is saved
    to ``checkpoint`` within long epochs and after epochs (see `LoopSettings`), and only then is an epoch reported. A
    report which got lost is made again: a fit that finds a saved state reports its epochs once more and goes on to
    the same trajectory, so that an epoch which was not saved is trained again to the same numbers.
    ``report`` may raise `StopTraining`. ``clock`` counts seconds.

    Raises:
        TrainingFailed: a loss, a gradient norm, a weight or the monitored metric is not finite; no such state is saved.
        OutOfMemory: the device is out of memory in a step or an evaluation.
        ArtefactError: the saved state is damaged or belongs to another training.
    """
    return Fitting(
        module, objective, optimiser, settings, train_rows, evaluate, generator, report, on_step, schedule, checkpoint,
        streams, batches, clock,
    ).alone()  # fmt: skip


@dataclass(eq=False)
class Fitting:
    """What `fit` is given, and the one loop over it: `alone` trains step by step, a population many of them at once."""

    module: nn.Module
    objective: Objective
    optimiser: torch.optim.Optimizer
    settings: LoopSettings
    train_rows: int
    evaluate: Callable[[], Mapping[str, float]]
    generator: torch.Generator
    report: Report = silent
    on_step: Callable[[], None] | None = None
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    checkpoint: Checkpoint = NO_CHECKPOINT
    streams: Sequence[Stream] = ()
    batches: Batches = shuffled_batches
    clock: Callable[[], float] = time.perf_counter
    finite_check: FiniteCheck = field(init=False)

    def __post_init__(self) -> None:
        self.device = next(self.module.parameters()).device
        self.randomness = Randomness((self.generator, *self.streams), self.device)
        tables = self.optimiser.tables if isinstance(self.optimiser, LazyAdam) else ()
        self.mean = weight_mean(self.module, self.settings.ema, tables)
        self.progress = Progress(micro_batch_size=self.settings.micro_batch_size)

    def draw_apart(self) -> torch.Generator:
        """From now on dropout has a stream of this fit's own, which begins where torch's is; returns it."""
        own = torch.Generator(device=self.device)
        on_gpu = self.device.type == "cuda"
        own.set_state(torch.cuda.get_rng_state(self.device) if on_gpu else torch.get_rng_state())
        self.randomness = replace(self.randomness, own=own)
        return own

    def alone(self, step: AloneStep | None = None) -> FitResult:
        """The whole training, by the ordinary step or another one; raises as `fit`."""
        step, run = step or AloneStep(self), self.steps()
        try:
            rows = next(run)
            while True:
                rows = run.send(step(rows))
        except StopIteration as end:
            result: FitResult = end.value
            return result

    def steps(self) -> Generator[Tensor, Tensor, FitResult]:
        """The loop: hands out the rows of each optimiser step, and is sent the detached mean loss of that step when it
        has been made. What comes between steps happens when the next rows are asked for."""
        state = FitState(self.module, self.optimiser, self.schedule, self.randomness, self.mean)
        if (saved := self.checkpoint.load()) is not None:
            self.progress = state.load(saved)
            _log.info("going on where it was saved: %s", self.progress.told())
        progress, settings, stopped = self.progress, self.settings, False
        self.finite_check = FiniteCheck(self.module, progress)
        writer = CheckpointWriter(
            self.checkpoint, state, progress, 60 * settings.checkpoint_minutes, self.clock, self.finite_check
        )
        self._tell_steps(progress.steps)
        steps_in_all = settings.epochs * math.ceil(self.train_rows / settings.batch_size)
        observer = TrainingObserver(progress, self.optimiser, self.train_rows, steps_in_all, self.objective, self.clock)
        try:
            observer.repeat(progress.history)
            for epoch, metrics in enumerate(progress.history, start=1):
                self.report(epoch, metrics)
            while progress.epoch < settings.epochs and progress.stale < settings.patience:
                writer.begin()
                loss = yield from self._epoch(writer, observer)
                self._judge(loss)
                writer.evaluated()
                observer.evaluated(progress.history[-1])
                self.report(progress.epoch, progress.history[-1])
        except StopTraining:
            stopped = True
        restore(self.module, progress.best_state)
        self.module.eval()
        return FitResult(
            best_epoch=progress.best_epoch,
            best_metrics=progress.best_metrics(),
            history=progress.history,
            epochs=progress.epoch,
            steps=progress.steps,
            rows_trained=progress.epoch * self.train_rows,
            seconds=progress.seconds,
            stopped=stopped,
        )

    def _epoch(self, writer: CheckpointWriter, observer: TrainingObserver) -> Generator[Tensor, Tensor, float]:
        """What is left of one pass over the rows; returns the mean loss of them all."""
        progress = self.progress
        self.module.train()
        left = progress.left(self._draw, self.generator, self.device)
        observer.begin()
        for rows in left:
            loss = yield rows
            progress.steps += 1
            if self.schedule is not None:
                self.schedule.step()
            self._tell_steps(1)
            progress.add(loss, len(rows) / self.train_rows)
            writer.step_done()
            observer.step_done(len(rows))
        observer.trained()
        writer.trained()
        return float(progress.loss)

    def _draw(self, order: torch.Generator) -> Iterator[Tensor]:
        return self.batches(self.train_rows, self.settings.batch_size, order, self.device)

    def _judge(self, loss: float) -> None:
        progress, settings = self.progress, self.settings
        with _out_of_memory_explained("with a second set of weights", "set loop.ema to 0"), averaged(self.mean):
            metrics = _evaluate(self.module, self.evaluate, loss, progress.epoch + 1, settings.monitor)
            progress.update_best(metrics, settings.monitor, self.module)
        shown = ", ".join(f"{name} {value:.5g}" for name, value in metrics.items())
        _log.debug("epoch %d: %s", progress.epoch, shown)

    def _tell_steps(self, steps: int) -> None:
        if self.on_step is not None:
            for _ in range(steps):
                self.on_step()


@dataclass(eq=False)
class AloneStep:
    """One optimiser step of a fit, and the mean's."""

    fit: Fitting

    def __post_init__(self) -> None:
        # a buffer that is not saved with the weights is a table (of tokens, of texts): no pass writes into it
        self.moving_buffers = (
            frozenset(changing(self.fit.module)) if self.fit.settings.adapt_micro_batch else frozenset()
        )

    def __call__(self, rows: Tensor) -> Tensor:
        """Train on these rows; returns the detached mean loss."""
        fit = self.fit
        loss = self._within_memory(rows) if fit.settings.adapt_micro_batch else self._gradients(rows)
        with _out_of_memory_explained("in the optimiser's step", "lower loop.micro_batch_size or the batch size"):
            # not to be repeated: a part of the parameters may have moved already
            norm = _descend(fit.optimiser, fit.settings.gradient_clip, fit.mean, fit.progress.steps)
        if norm is not None:
            fit.finite_check.saw_norm(norm)
        return loss

    def _gradients(self, rows: Tensor) -> Tensor:
        advice = "set loop.adapt_micro_batch, or lower loop.micro_batch_size or the batch size"
        with _out_of_memory_explained("in a training step", advice):
            return _accumulate(self.fit.objective, self.fit.optimiser, rows, self.fit.progress.micro_batch_size)

    def _within_memory(self, rows: Tensor) -> Tensor:
        """The gradients in as few forward passes as the device has memory for; the effective batch stays what it is.

        A pass that failed leaves no trace: buffers (batch norm's running statistics) and streams are put back, and the
        step is that of a training which had the smaller micro-batch from the beginning.
        """
        fit = self.fit
        buffers = [
            (buffer, buffer.clone()) for name, buffer in fit.module.named_buffers() if name in self.moving_buffers
        ]
        drawn = fit.randomness.save()
        while True:
            size = min(fit.progress.micro_batch_size or len(rows), len(rows))
            try:
                return _accumulate(fit.objective, fit.optimiser, rows, size)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = torch_reason(error)
                if size == 1:
                    advice = "take a smaller or quantised model, or shorter rows"
                    raise OutOfMemory(f"out of memory with one row per forward pass ({reason}): {advice}") from error
            # outside the handler: the exception would keep the failed step's tensors alive
            fit.progress.micro_batch_size = size // 2
            _log.warning("out of memory (%s): going on with %d rows per forward pass, same batch", reason, size // 2)
            fit.optimiser.zero_grad(set_to_none=True)
            give_back(rows.device)
            fit.randomness.load(drawn)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


@contextmanager
def _out_of_memory_explained(where: str, advice: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"the device is out of memory {where} ({torch_reason(error)}): {advice}") from error


def _evaluate(
    module: nn.Module, evaluate: Callable[[], Mapping[str, float]], loss: float, epoch: int, monitor: str
) -> dict[str, float]:
    module.eval()
    advice = "lower the batch size of the evaluation (evaluation.batch_size; a teacher's: teacher.export.batch_size)"
    with torch.no_grad(), _out_of_memory_explained(f"in the evaluation of epoch {epoch}", advice):
        metrics = {"train_loss": loss, **evaluate()}
    if monitor not in metrics:
        raise TrainingFailed(f"monitor = {monitor!r} is not among the evaluated metrics {sorted(metrics)}")
    if not math.isfinite(metrics[monitor]):
        raise TrainingFailed(f"{monitor} of epoch {epoch} is {metrics[monitor]}")
    return metrics
