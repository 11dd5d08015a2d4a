"""Curves of trainings, followed while they run: by TensorBoard, MLflow or Weights & Biases, or by nobody.

A tracker has a run for each training, by name. A run's points go forward: one at or before the last step of its curve
is not written again. So a training that was killed and goes on, or an epoch that is told twice, leaves no point twice;
what is trained again gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from src.core.documents import read_mapping
from src.core.errors import ConfigError, ProblemsFound
from src.core.logging import get_logger, is_terminal
from src.core.paths import write_json
from src.core.progress_lines import ProgressLines
from src.core.result_files import CURVES
from src.core.watching import TrainingStatus, Watcher, Watchers, watched_by

_log = get_logger(__name__)

Tracking = Literal["tensorboard", "mlflow", "wandb", "none"]
#: what a point is counted by: optimiser steps or epochs
Axis = Literal["step", "epoch"]
#: an epoch's metrics that are not of the validation split
OF_TRAINING = {"train_loss": "train/epoch_loss", "taught_share": "train/taught_share"}
#: packages that are not installed with this project, and what installs them
_OPTIONAL = {"mlflow": "mlflow-skinny", "wandb": "wandb"}


@dataclass(frozen=True)
class Outcome:
    """What was tried and what came of it: a line of a tracker's table.

    ``name`` is the run's; ``results`` may hold text (`state`); ``step`` is where they belong on a curve.
    """

    name: str
    parameters: Mapping[str, bool | int | float | str]
    results: Mapping[str, float | str]
    step: int = 0


class Run(Protocol):
    """One training's curves."""

    def log(self, axis: Axis, at: int, values: Mapping[str, float]) -> None:
        """Draw a point of several curves; a curve that has one at ``at`` or later already stays as it is.

        Args:
            axis: what points are counted by.
            at: the place on that axis.
            values: each curve's value, by its name.
        """

    def close(self) -> None:
        """Everything is written."""


class Tracker(Protocol):
    """Where runs and tables are kept."""

    def run(self, name: str) -> Run:
        """A new run, or one that goes on; ``name`` may hold ``/``."""

    def table(self, name: str, parameters: Sequence[str], outcomes: Sequence[Outcome]) -> None:
        """Keep what was tried, in place of an earlier table of that name.

        Args:
            name: of the table.
            parameters: its columns in front of the results.
            outcomes: its lines.
        """


@dataclass
class LastPoints:
    """The last step of each curve of some runs, kept in a file for trackers whose own files are no record.

    It is written before the points are: a kill between the two loses points and doubles none.
    """

    path: Path
    _known: dict[str, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.path.exists():
            return
        try:
            self._known = read_mapping(self.path, dict[str, dict[str, int]])
        except ProblemsFound as error:
            _log.warning("%s; points of its curves may be written once more", error)

    def ahead(self, run: str, at: int, values: Mapping[str, float]) -> dict[str, float]:
        """The values that are ahead of their curves, which from here on end there.

        Args:
            run: the run's name.
            at: the step or epoch of the values.
            values: by curve.
        """
        last = self._known.setdefault(run, {})
        found = {name: value for name, value in values.items() if at > last.get(name, -1)}
        if found:
            last.update(dict.fromkeys(found, at))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self._known)
        return found


class NoTracker:
    """A tracker, and a run, that keeps nothing."""

    def run(self, name: str) -> NoTracker:
        """A run that keeps nothing either."""
        return self

    def table(self, name: str, parameters: Sequence[str], outcomes: Sequence[Outcome]) -> None:
        """The table is not kept; see `Tracker.table`."""

    def log(self, axis: Axis, at: int, values: Mapping[str, float]) -> None:
        """The points are not kept; see `Run.log`."""

    def close(self) -> None:
        """There is nothing to close."""


def check_tracking(tracking: Tracking) -> None:
    """Raises ``ConfigError`` where the package that a tracker needs is not installed."""
    if tracking in _OPTIONAL and find_spec(tracking) is None:
        rule = f"needs {tracking}, which is not installed"
        raise ConfigError.one("runtime.tracking", tracking, rule, f"pip install {_OPTIONAL[tracking]}")


@cache
def tracker_for(tracking: Tracking, folder: Path) -> Tracker:
    """The tracker of a result folder, one a process; packages are imported when they are asked for."""
    match tracking:
        case "tensorboard":
            from src.pipeline.trackers.tensorboard import TensorBoard

            return TensorBoard(folder / CURVES)
        case "mlflow":
            from src.pipeline.trackers.mlflow import MLflow

            return MLflow(folder)
        case "wandb":
            from src.pipeline.trackers.wandb import WandB

            return WandB(folder)
        case "none":
            return NoTracker()


@dataclass
class FailSafeRun:
    """A run whose points get lost where its place is full or cannot be reached: no training ends for its curves."""

    run: Run

    @classmethod
    def of(cls, tracker: Tracker, name: str) -> FailSafeRun:
        """A tracker's run."""
        made = cls(NoTracker())
        with made._watched():
            made.run = tracker.run(name)
        return made

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.run = NoTracker()  # told once
            _log.warning("curves are lost from here on: %s", error.strerror or error)

    def log(self, axis: Axis, at: int, values: Mapping[str, float]) -> None:
        """As `Run.log`."""
        with self._watched():
            self.run.log(axis, at, values)

    def close(self) -> None:
        """As `Run.close`."""
        with self._watched():
            self.run.close()


@dataclass
class Curves:
    """Watches one training for a tracker. The run begins with its first point: a training in closed form has none."""

    tracker: Tracker
    name: str
    _run: Run | None = None

    def update(self, status: TrainingStatus) -> None:
        """Loss, learning rate and pace, by optimiser steps."""
        self._log("step", status.step, {f"train/{name}": value for name, value in status.values.items()})

    def epoch(self, epoch: int, status: TrainingStatus, metrics: Mapping[str, float]) -> None:
        """Draw all metrics of an epoch, too; as `Watcher.epoch`."""
        self.update(status)
        self._log("epoch", epoch, by_epoch(metrics))

    def _log(self, axis: Axis, at: int, values: Mapping[str, float]) -> None:
        if values:
            self._run = self._run or FailSafeRun.of(self.tracker, self.name)
            self._run.log(axis, at, values)

    def close(self) -> None:
        """The run is written."""
        if self._run is not None:
            self._run.close()


@contextmanager
def followed(tracking: Tracking, folder: Path) -> Iterator[None]:
    """The driver's trainings in the block are drawn, and without a terminal told in a line now and then."""

    def watcher(name: str) -> Watcher:
        curves = Curves(tracker_for(tracking, folder), name)
        return curves if is_terminal() else Watchers((curves, ProgressLines(name)))

    with watched_by(watcher):
        yield


def write_curves(tracker: Tracker, name: str, history: Sequence[Mapping[str, float]]) -> None:
    """Draw a training that is over; points that were drawn while it ran stay as they are.

    Args:
        tracker: keeps the curves.
        name: of the training's run.
        history: the metrics of each epoch, the first epoch's first.
    """
    run = tracker.run(name)
    for epoch, metrics in enumerate(history, start=1):
        run.log("epoch", epoch, by_epoch(metrics))
    run.close()


def by_epoch(metrics: Mapping[str, float]) -> dict[str, float]:
    """The curves of an epoch's metrics: viewers show those of one prefix as one group."""
    return {OF_TRAINING.get(name, f"validation/{name}"): value for name, value in metrics.items()}


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those of some values that are numbers."""
    return {name: float(value) for name, value in values.items() if isinstance(value, (bool, int, float))}
