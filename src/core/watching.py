"""Who watches a training while it runs. Watching changes nothing: the loop looks for a watcher as it looks for a log.

    with watched_by(lambda name: ProgressLines(name)):   # around a run: what is made of each training's name
        with training("teacher"):                # around one training
            fit(...)                             # tells the watcher

A status reads the loss, for which a GPU is waited for: it is taken every few seconds, never in every step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from src.core.fit_state import Progress

#: seconds between two statuses at least
STATUS_SECONDS = 5.0


@dataclass(frozen=True)
class TrainingStatus:
    """Where a training is.

    Attributes:
        step: optimiser steps done, those of an interrupted run among them.
        steps: of a training that nothing ends early.
        values: `loss` (the mean since the last status), `learning_rate`, `rows_per_second`, and `tokens_per_second`
            where the objective counts tokens; what is not known yet is absent.
        left: seconds, about, evaluations among them; None where nobody can tell.
    """

    step: int
    steps: int
    values: Mapping[str, float]
    left: float | None = None


class Watcher(Protocol):
    """What is told of one training."""

    def update(self, status: TrainingStatus) -> None:
        """Every few seconds within an epoch."""

    def epoch(self, epoch: int, status: TrainingStatus, metrics: Mapping[str, float]) -> None:
        """An epoch is over, and not reported yet. Epochs that a saved state brings along are told again.

        Args:
            epoch: its number, from 1.
            status: where the training is, with the epoch's mean loss.
            metrics: what was measured on validation.
        """

    def close(self) -> None:
        """The training is over, in whatever way."""


@dataclass(frozen=True)
class Watchers:
    """Several as one."""

    each: tuple[Watcher, ...]

    def update(self, status: TrainingStatus) -> None:
        """Tell each watcher where the training is."""
        for watcher in self.each:
            watcher.update(status)

    def epoch(self, epoch: int, status: TrainingStatus, metrics: Mapping[str, float]) -> None:
        """Tell each watcher of an epoch.

        Args:
            epoch: its number, from 1.
            status: where the training is.
            metrics: what was measured on validation.
        """
        for watcher in self.each:
            watcher.epoch(epoch, status, metrics)

    def close(self) -> None:
        """Tell each watcher that the training is over."""
        with ExitStack() as stack:
            for watcher in self.each:
                stack.callback(watcher.close)


_makes: ContextVar[Callable[[str], Watcher] | None] = ContextVar("makes", default=None)
_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watched_by(make: Callable[[str], Watcher]) -> Iterator[None]:
    """Trainings of the block are watched by what ``make`` gives for their names."""
    token = _makes.set(make)
    try:
        yield
    finally:
        _makes.reset(token)


@contextmanager
def training(name: str) -> Iterator[None]:
    """The trainings of the block have this name; nothing happens where nobody watches."""
    make = _makes.get()
    if make is None:
        yield
        return
    with watching(make(name)):
        yield


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """The trainings of the block are told to this watcher, which is closed at its end."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)
        watcher.close()


class TokenCount(Protocol):
    """An objective that counts the tokens which pass through it."""

    def tokens_seen(self) -> int:
        """So far in this process; may wait for the device."""


@dataclass
class TrainingObserver:
    """The loop's side: tells whoever watches where the training is.

    Args:
        progress: of the fit.
        optimiser: its first group's learning rate is told.
        rows: training rows.
        steps: of a training that nothing ends early.
        objective: may be a `TokenCount`.
        clock: counts seconds; asked only where somebody watches.
        watcher: who watches; by default whoever `watching` names.
    """

    progress: Progress
    optimiser: torch.optim.Optimizer
    rows: int
    steps: int
    objective: Any
    clock: Callable[[], float] = time.perf_counter
    watcher: Watcher | None = field(default_factory=lambda: _watcher.get())

    def __post_init__(self) -> None:
        if self.watcher is not None:
            self._begun, self._done_before = self.clock(), self.progress.steps
            self._count = getattr(self.objective, "tokens_seen", None)
            self._mark(self._begun)

    def _mark(self, now: float) -> None:
        """The next status counts from here. The running loss is kept as it is: to read it is to wait."""
        self._since, self._loss, self._rows = now, self.progress.loss, 0
        self._tokens = 0 if self._count is None else self._count()

    def repeat(self, history: list[dict[str, float]]) -> None:
        """Tell the epochs that a saved state brought along."""
        if self.watcher is not None:
            per_epoch = self.progress.steps // max(len(history), 1)
            for epoch, metrics in enumerate(history, start=1):
                self.watcher.epoch(epoch, TrainingStatus(epoch * per_epoch, self.steps, {}), metrics)

    def begin(self) -> None:
        """An epoch begins: what the evaluation before took is not its steps' time."""
        if self.watcher is not None:
            self._told_within = False
            self._mark(self.clock())

    def step_done(self, rows: int) -> None:
        """Count a step of so many rows; tell the watcher where enough time has passed."""
        if self.watcher is None:
            return
        self._rows += rows
        now = self.clock()
        if now - self._since >= STATUS_SECONDS:
            # the epoch's loss is a sum of the steps' means by their share of its rows
            loss = float(self.progress.loss - self._loss) * self.rows / self._rows
            self.watcher.update(self._status(now, loss))
            self._mark(now)
            self._told_within = True

    def trained(self) -> None:
        """The epoch's steps are done: from here on it is evaluated."""
        if self.watcher is not None:
            self._last = self._status(self.clock(), None)

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """The epoch that was judged last."""
        if self.watcher is None:
            return
        loss = {} if self._told_within or "train_loss" not in metrics else {"loss": metrics["train_loss"]}
        status = replace(self._last, values={**loss, **self._last.values})
        self.watcher.epoch(self.progress.epoch, status, metrics)

    def _status(self, now: float, loss: float | None) -> TrainingStatus:
        values: dict[str, float] = {} if loss is None or not math.isfinite(loss) else {"loss": loss}
        values["learning_rate"] = float(self.optimiser.param_groups[0]["lr"])
        seconds, done = now - self._since, self.progress.steps - self._done_before
        if seconds > 0 and self._rows:
            values["rows_per_second"] = self._rows / seconds
            if self._count is not None:
                values["tokens_per_second"] = (self._count() - self._tokens) / seconds
        left = (now - self._begun) / done * (self.steps - self.progress.steps) if done else None
        return TrainingStatus(self.progress.steps, self.steps, values, left)
