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
from ray.exceptions import RayActorError, RayError
from ray.tune.error import TuneError
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from src.core.errors import AnyoError, Paused
from src.core.logging import get_logger
from src.pipeline.tracking import NoTracker
from src.tuning.dispatch import Dispatcher, Job
from src.tuning.lost_workers import WorkerLost, losses_as_deaths
from src.tuning.processes import remember_children
from src.tuning.resources import Resources
from src.tuning.trainable import LOG, MESSAGE, Trainable
from src.tuning.trial_curves import POINTS, TrialCurves
from src.tuning.worker_trials import WorkerTrials

_log = get_logger(__name__)

_ROUNDING = 1e-6  # of shares that add up to a whole GPU


class _Halt(Exception):
    """Leaves Tune's loop between two steps."""


@dataclass
class RunningSearch:
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
    workers: dict[str, WorkerTrials] = field(default_factory=dict)
    curves: TrialCurves = field(default_factory=lambda: TrialCurves(NoTracker()))

    def has_room(self) -> bool:
        """Whether another trial could start beside those that run; with none running, Tune may decide.

        Tune asks for one trial more than can run (measured): drawn then, it would not know how these end, and a trial
        that comes back after its worker died would have to wait behind it.
        """
        running = [worker.first for worker in self.workers.values() if worker.open(self.dispatcher)]
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


_running: RunningSearch | None = None


def running_search() -> RunningSearch:
    """What this process searches; raises ``AnyoError`` where it does not."""
    if _running is None:
        raise AnyoError("no search is running in this process")
    return _running


class StudySearcher(Searcher):
    """Trials come from the dispatcher; ends are told to it."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial, `FINISHED` when all have ended, None while nothing can start or one may come back."""
        state = running_search()
        jobs = state.dispatcher.together() if state.has_room() else []
        if not jobs:
            return Searcher.FINISHED if state.dispatcher.finished or state.dispatcher.halted else None
        worker = state.workers[trial_id] = WorkerTrials(jobs)
        share = configuration(jobs[0], state.resources)
        return worker.configuration(share) if jobs[0].group else share

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A worker is through; how its trial ended was in its last report."""
        for job in running_search().workers[trial_id].jobs:
            running_search().dispatcher.on_end(job.start)

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
        worker, message = running_search().workers[trial.trial_id], json.loads(result[MESSAGE])
        if message.get("kind") == "round":
            for member, one in message["reports"]:
                self._draw(int(member), one)
            worker.take(running_search().dispatcher, message)
            going_on = {job.start for job in worker.open(running_search().dispatcher)}
            for job in worker.jobs:
                if job.start not in going_on:
                    running_search().curves.end(job)
            return TrialScheduler.CONTINUE
        report = self._without_retry(message, float(trial.config["share"]))
        start = worker.first.start
        self._draw(start, report)
        if report.get("kind") == POINTS:
            running_search().dispatcher.on_change()
            return TrialScheduler.CONTINUE
        stop = running_search().dispatcher.on_report(start, report)
        if stop:
            running_search().curves.end(worker.first)
        # a trial that has told its end leaves by itself: a stop would also have to wait for its thread
        return TrialScheduler.STOP if stop and report.get("kind") == "epoch" else TrialScheduler.CONTINUE

    @staticmethod
    def _draw(start: int, report: Mapping[str, Any]) -> None:
        """A trial that was stopped before is drawn no more."""
        if (job := running_search().dispatcher.job(start)) is not None:
            running_search().curves.take(job, report)

    @staticmethod
    def _without_retry(report: dict[str, Any], share: float) -> dict[str, Any]:
        """Out of memory asks for a larger share; who had the whole GPU would run out of it again."""
        return {**report, "kind": "failed"} if report.get("kind") == "memory" and share >= 1 else report

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """A dead worker's trial goes on elsewhere; an exception is a defect."""
        running = running_search()
        starts = [job.start for job in running.workers[trial.trial_id].jobs]
        error = _error_of(trial)
        if isinstance(error, WorkerLost):
            running.dispatcher.on_loss(starts, error.reason)
        elif isinstance(error, RayActorError):
            for start in starts:
                running.dispatcher.on_death(start, running.death())
        else:
            file = Path(trial.error_file) if trial.error_file else None
            text = file.read_text(encoding="utf-8") if file is not None and file.is_file() else "unknown error"
            for start in starts:
                running.dispatcher.on_error(start, text.strip())


def _error_of(trial: Trial) -> object:
    """The exception that ended a trial. Ray's own reader looks where the file is copied to later (measured: None)."""
    file = Path(trial.pickled_error_file) if trial.pickled_error_file else None
    if file is None or not file.is_file():
        return None
    with file.open("rb") as handle:
        return ray.cloudpickle.load(handle)


class TuneCallback(TrialProgressCallback):
    """Stands in place of Tune's own lines about trials, and is where a halted search leaves Tune's loop."""

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: object) -> None:
        """Leave when the search was halted."""
        if running_search().dispatcher.halted:
            raise _Halt

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        """Note the workers, which Ray starts as it needs them."""
        try:
            remember_children(running_search().folder, running_search().scratch)
        except OSError as error:
            running_search().dispatcher.halt(f"the result folder cannot be written ({error.strerror or error})")

    def on_trial_result(self, *_: object, **__: object) -> None:
        """The report went to the scheduler, which is all that is needed."""

    def on_trial_error(self, *_: object, **__: object) -> None:
        """The error went to the scheduler."""

    def on_trial_complete(self, *_: object, **__: object) -> None:
        """The end went to the searcher."""


def execute(
    dispatcher: Dispatcher,
    trainable: Trainable,
    resources: Resources,
    folder: Path,
    scratch: Path,
    elastic: bool,
    curves: TrialCurves | None = None,
) -> None:
    """Work through the dispatcher's searches in the running Ray session.

    Args:
        dispatcher: decides what is worked on.
        trainable: what a worker does.
        resources: what each worker gets.
        folder: the result folder, which notes the workers.
        scratch: where Tune keeps its own files.
        elastic: whether there may be more nodes later.
        curves: takes what trials tell of their trainings.

    Raises:
        Paused: the dispatcher was halted, or Ray ended by an exception of its own. Any other one is a defect.
    """
    global _running
    total = None if elastic else ray.cluster_resources
    _running = RunningSearch(dispatcher, resources, folder, scratch, total, trainable.stall_minutes)
    _running.curves = curves or _running.curves
    try:
        if not (dispatcher.halted or dispatcher.finished):
            with losses_as_deaths():
                _tuner(trainable, resources, scratch).fit()
    except _Halt:
        pass
    except (RayError, TuneError, RuntimeError) as error:
        if (defect := _defect(error)) is not None:
            raise defect from None
        _log.debug("what ended Ray Tune:", exc_info=True)
        said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        # a `TuneError` may be a whole traceback, whose last line says what it was
        dispatcher.halt(f"Ray Tune has ended ({said[-1 if isinstance(error, TuneError) else 0]}); run.log says more")
    finally:
        _running = None
    if dispatcher.halted:
        raise Paused(dispatcher.halted)


def _defect(error: BaseException) -> BaseException | None:
    """What no part of Ray has raised; None where Ray ended by itself, or for a disk or a network.

    Tune makes a `TuneError` of whatever our searcher and scheduler raise, and its manager of workers a `RuntimeError`
    of what Ray raises.
    """
    inner = error.__context__ if isinstance(error, TuneError) else error
    if isinstance(inner, (RayError, TuneError, OSError, type(None))):
        return None
    cause: BaseException | None = inner
    while cause is not None and not isinstance(cause, RayError):
        cause = cause.__cause__
    return inner if cause is None else None


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
            callbacks=[TuneCallback()],
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
