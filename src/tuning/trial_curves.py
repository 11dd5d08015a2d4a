"""Trials' curves while they train: a worker sends points with its reports, the driver draws them.

So a trial on another machine is drawn beside the others, and the files have one writer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from src.core.watching import TrainingStatus
from src.pipeline.tracking import FailSafeRun, Run, Tracker, by_epoch, numbers
from src.tuning.dispatch import Job
from src.tuning.study import SEARCH

#: the kind of report that is about curves alone
POINTS = "points"
#: seconds between two reports within an epoch at least: each one waits a moment for the driver
_EVERY = 30.0


@dataclass
class CurveReporter:
    """The worker's side: watches a trial's training, and sends its points with the trial's reports.

    Args:
        tell: sends a report.
        clock: counts seconds.
    """

    tell: Callable[[Mapping[str, Any]], None]
    clock: Callable[[], float] = time.monotonic
    _kept: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._sent = self.clock()

    def update(self, status: TrainingStatus) -> None:
        """Keep it for the next report; in a long epoch one is sent for it."""
        self._keep(status)
        if self.clock() - self._sent >= _EVERY:
            self.tell({"kind": POINTS, **self._taken()})

    def epoch(self, epoch: int, status: TrainingStatus, metrics: Mapping[str, float]) -> None:
        """Keep the epoch's point for the epoch's own report, which follows; as `Watcher.epoch`."""
        self._keep(status)

    def _keep(self, status: TrainingStatus) -> None:
        if status.values:
            self._kept.append((status.step, dict(status.values)))

    def _taken(self) -> dict[str, Any]:
        kept, self._kept, self._sent = self._kept, [], self.clock()
        return {POINTS: kept}

    def taken(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        """What an epoch's report says besides, the points since the last report among it."""
        return {**self._taken(), "metrics": numbers(metrics)}

    def close(self) -> None:
        """Nothing: what was not sent belongs to an epoch that did not end."""


@dataclass
class TrialCurves:
    """The driver's side: a run of the tracker for each trial."""

    tracker: Tracker
    _runs: dict[str, Run] = field(default_factory=dict)

    def take(self, job: Job, report: Mapping[str, Any]) -> None:
        """Draw what a report tells; one that ends its trial closes the run."""
        name = run_name(job.study, job.number)
        for step, values in report.get(POINTS, ()):
            self._run(name).log("step", int(step), {f"train/{key}": value for key, value in values.items()})
        if report.get("kind") == "epoch" and "metrics" in report:
            self._run(name).log("epoch", int(report["epoch"]), by_epoch(report["metrics"]))
        if report.get("kind") not in ("epoch", POINTS):
            self.end(job)

    def end(self, job: Job) -> None:
        """A trial has ended; one that comes back goes on where its curves end."""
        if (run := self._runs.pop(run_name(job.study, job.number), None)) is not None:
            run.close()

    def _run(self, name: str) -> Run:
        if name not in self._runs:
            self._runs[name] = FailSafeRun.of(self.tracker, name)
        return self._runs[name]

    def close(self) -> None:
        """Close every run: a trial whose worker died never said how it ended."""
        while self._runs:
            self._runs.popitem()[1].close()


@contextmanager
def trial_curves(tracker: Tracker) -> Iterator[TrialCurves]:
    """Curves for the block."""
    curves = TrialCurves(tracker)
    try:
        yield curves
    finally:
        curves.close()


def table_name(study: str) -> str:
    """The name of a study's table and, as a folder, of its trials' runs; the single search's is the tracker's own."""
    return "" if study == SEARCH else study.replace(" ", "_")


def run_name(study: str, number: int) -> str:
    """The name of a trial's run."""
    return f"{table_name(study)}/trial_{number:04d}".lstrip("/")
