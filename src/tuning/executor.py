"""Ray Tune as the executor: a searcher that asks the dispatcher, a scheduler that tells it every report.

Ray counts resources, starts workers and carries reports; every decision is the dispatcher's, every record the study's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from src.core.errors import AnyoError, Paused
from src.pipeline.tracking import Nobody
from src.tuning.crew import Crew
from src.tuning.dispatch import Dispatcher, Job
from src.tuning.processes import remember_children
from src.tuning.resources import Resources
from src.tuning.trainable import LOG, MESSAGE, Trainable
from src.tuning.trial_curves import LOOKS, TrialCurves

_ROUNDING = 1e-6  # of shares that add up to a whole GPU


class _Halt(Exception):
    """Leaves Tune's loop between two steps."""


@dataclass
class _Desk:
    """What searcher, scheduler and callback share. It lives in the driver only; Ray pickles searchers, so they find it
    here, in an importable module."""

    dispatcher: Dispatcher
    resources: Resources
    folder: Path
    scratch: Path
    #: what there is in all; None in a cluster, whose autoscaler grows it for a trial that waits
    total: Callable[[], Mapping[str, float]] | None = None
    stall_minutes: float = 0.0
    #: what each worker was given, by Ray's name of it
    workers: dict[str, Crew] = field(default_factory=dict)
    curves: TrialCurves = field(default_factory=lambda: TrialCurves(Nobody()))

    def has_room(self) -> bool:
        """Whether another trial could start beside those that run; with none running, Tune may decide.

        Tune asks for one trial more than can run (measured): drawn then, it would not know how these end, and a trial
        that comes back after its worker died would have to wait behind it.
        """
        running = [crew.first for crew in self.workers.values() if crew.open(self.dispatcher)]
        if self.total is None or not running:
            return True
        total, share = self.total(), self.resources.share
        cpu = _cpu(self.resources) * (len(running) + 1)
        gpu = sum(share(job.memory_retries) for job in running) + share(0)
        return cpu <= total.get("CPU", 0.0) + _ROUNDING and gpu <= total.get("GPU", 0.0) + _ROUNDING

    def death(self) -> str:
        """Why a worker may have died."""
        stalled = f", or no epoch was reported for tuning.stall_minutes={self.stall_minutes:g}"
        return f"its worker died{stalled if self.stall_minutes else ''}; {LOG} says what it did last"


_desk: _Desk | None = None


def desk() -> _Desk:
    """The running search's desk."""
    if _desk is None:
        raise AnyoError("no search is running in this process")
    return _desk


class StudySearcher(Searcher):
    """Trials come from the dispatcher; ends are told to it."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial, `FINISHED` when all have ended, None while nothing can start or one may come back."""
        state = desk()
        jobs = state.dispatcher.together() if state.has_room() else []
        if not jobs:
            return Searcher.FINISHED if state.dispatcher.finished or state.dispatcher.halted else None
        crew = state.workers[trial_id] = Crew(jobs)
        share = configuration(jobs[0], state.resources)
        return crew.configuration(share) if jobs[0].group else share

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A worker is through; how its trial ended was in its last report."""
        for job in desk().workers[trial_id].jobs:
            desk().dispatcher.on_end(job.start)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a search goes on from its study."""


def _cpu(resources: Resources) -> float:
    """Ray starts everything at once that needs no core."""
    return max(resources.cpu, 0.01)


def configuration(job: Job, resources: Resources) -> dict[str, Any]:
    """What a worker gets of a job."""
    share, memory = resources.share(job.memory_retries), resources.memory(job.memory_retries)
    return {
        "number": job.number, "values": dict(job.values), "folder": job.folder, "share": share, "memory": memory,
    }  # fmt: skip


class StudyScheduler(FIFOScheduler):
    """First come, first served; every report goes to the dispatcher, which may stop the trial."""

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """CONTINUE or STOP."""
        if MESSAGE not in result:  # a trial that ends without a word: `on_trial_complete` says so
            return TrialScheduler.CONTINUE
        crew, told = desk().workers[trial.trial_id], json.loads(result[MESSAGE])
        if told.get("kind") == "round":
            for member, one in told["reports"]:
                self._draw(int(member), one)
            crew.take(desk().dispatcher, told)
            going_on = {job.start for job in crew.open(desk().dispatcher)}
            for job in crew.jobs:
                if job.start not in going_on:
                    desk().curves.end(job)
            return TrialScheduler.CONTINUE
        report = self._judged(told, float(trial.config["share"]))
        start = crew.first.start
        self._draw(start, report)
        if report.get("kind") == LOOKS:
            desk().dispatcher.on_change()
            return TrialScheduler.CONTINUE
        stop = desk().dispatcher.on_report(start, report)
        if stop:
            desk().curves.end(crew.first)
        # a trial that has told its end leaves by itself: a stop would also have to wait for its thread
        return TrialScheduler.STOP if stop and report.get("kind") == "epoch" else TrialScheduler.CONTINUE

    @staticmethod
    def _draw(start: int, report: Mapping[str, Any]) -> None:
        """A trial that was stopped before is drawn no more."""
        if (job := desk().dispatcher.job(start)) is not None:
            desk().curves.take(job, report)

    @staticmethod
    def _judged(report: dict[str, Any], share: float) -> dict[str, Any]:
        """Out of memory asks for a larger share; who had the whole GPU would run out of it again."""
        return {**report, "kind": "failed"} if report.get("kind") == "memory" and share >= 1 else report

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """A dead worker's trial goes on elsewhere; an exception is a defect."""
        starts = [job.start for job in desk().workers[trial.trial_id].jobs]
        if isinstance(_error_of(trial), RayActorError):
            for start in starts:
                desk().dispatcher.on_death(start, desk().death())
        else:
            file = Path(trial.error_file) if trial.error_file else None
            text = file.read_text(encoding="utf-8") if file is not None and file.is_file() else "unknown error"
            for start in starts:
                desk().dispatcher.on_error(start, text.strip())


def _error_of(trial: Trial) -> object:
    """The exception that ended a trial. Ray's own reader looks where the file is copied to later (measured: None)."""
    file = Path(trial.pickled_error_file) if trial.pickled_error_file else None
    if file is None or not file.is_file():
        return None
    with file.open("rb") as handle:
        return ray.cloudpickle.load(handle)


class Watch(TrialProgressCallback):
    """In place of Tune's own lines about trials; and the place where a halted search leaves Tune's loop."""

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: object) -> None:
        """Leave when the search was halted."""
        if desk().dispatcher.halted:
            raise _Halt

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Note the workers, which Ray starts as it needs them."""
        try:
            remember_children(desk().folder, desk().scratch)
        except OSError as error:
            desk().dispatcher.halt(f"the result folder cannot be written ({error.strerror or error})")

    def on_trial_result(self, *_: object, **__: object) -> None:
        """Nothing."""

    def on_trial_error(self, *_: object, **__: object) -> None:
        """Nothing."""

    def on_trial_complete(self, *_: object, **__: object) -> None:
        """Nothing."""


def execute(
    dispatcher: Dispatcher,
    trainable: Trainable,
    resources: Resources,
    folder: Path,
    scratch: Path,
    elastic: bool,
    curves: TrialCurves | None = None,
) -> None:
    """Work through the dispatcher's searches in the running Ray session; an ``elastic`` one may have more nodes later.

    ``curves`` takes what trials tell of their trainings.
    Raises ``Paused`` when the dispatcher was halted, or the machine's memory ran out.
    """
    global _desk
    total = None if elastic else ray.cluster_resources
    _desk = _Desk(dispatcher, resources, folder, scratch, total, trainable.stall_minutes)
    _desk.curves = curves or _desk.curves
    try:
        if not (dispatcher.halted or dispatcher.finished):
            _tuner(trainable, resources, scratch).fit()
    except _Halt:
        pass
    except RuntimeError as error:
        if not _low_memory(error):
            raise
        dispatcher.halt(
            "the machine's memory was nearly full, and Ray ended a worker that was about to begin: make room"
        )
    finally:
        _desk = None
    if dispatcher.halted:
        raise Paused(dispatcher.halted)


def _low_memory(error: BaseException | None) -> bool:
    """Whether Tune ended because Ray's memory monitor ended a worker: one that had begun is a trial that goes on."""
    while error is not None and not isinstance(error, OutOfMemoryError):
        error = error.__cause__ or error.__context__
    return error is not None


def _tuner(trainable: Trainable, resources: Resources, scratch: Path) -> tune.Tuner:
    def needs(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        share = float(config["share"])
        return tune.PlacementGroupFactory([{"CPU": _cpu(resources), **({"GPU": share} if share else {})}])

    return tune.Tuner(
        tune.with_resources(trainable, needs),
        tune_config=tune.TuneConfig(
            search_alg=StudySearcher(),
            scheduler=StudyScheduler(),
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(scratch / "tune"),
            verbose=0,
            callbacks=[Watch()],
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
