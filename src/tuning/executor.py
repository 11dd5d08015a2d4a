"""Ray Tune as the executor: a searcher that asks the study, a scheduler that lets the study's pruner decide.

Ray counts resources, starts workers and carries reports; every decision and every record is the study's.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from src.core.errors import AnyoError
from src.core.logging import get_logger
from src.core.paths import REPOSITORY, read_json
from src.tuning.search_space import Value
from src.tuning.settings import TuningSettings
from src.tuning.study import Record
from src.tuning.trainable import FAILURE, RESULT, STUDENT, Trainable, TrialData

_log = get_logger(__name__)

_ENVIRONMENT = {
    # a report without the objective must not end the whole search
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # a worker that takes long to clean up would otherwise be lost, and with it a slot, for ever
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    # Tune's own snapshots are never read: the study is the record
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # only our own lines on the terminal
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # trials keep the caller's folder, so relative paths mean what they say
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # a trial with no GPU share must not reach for the GPU
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass
class Board:
    """What the searcher, the scheduler and the screen share: the record, and which Ray trial is which number.

    It lives in the driver only; Ray pickles searchers, so they find it here, in an importable module.
    """

    record: Record
    first: dict[str, Value]
    trials: int
    folder: Path
    keep_top: int
    on_change: Callable[[], None]
    numbers: dict[str, int] = field(default_factory=dict)


_board: Board | None = None


def board() -> Board:
    """The running search's board."""
    if _board is None:
        raise AnyoError("no search is running in this process")
    return _board


class StudySearcher(Searcher):
    """Proposals come from the study; ends are told to it."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial's number and values, or `FINISHED` at the configured number of trials."""
        state = board()
        number = len(state.record.trials())
        if number >= state.trials:
            return Searcher.FINISHED
        frozen = state.record.ask(state.first if number == 0 else None)
        state.numbers[trial_id] = frozen.number
        return {"number": frozen.number, "values": dict(frozen.params)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell how a trial ended; the value comes from the trial's own file."""
        state = board()
        number = state.numbers[trial_id]
        if not state.record.is_running(number):
            return
        folder = state.folder / str(number)
        if error or not (folder / RESULT).is_file():
            state.record.fail(number, _failure(folder, error))
        else:
            self._complete(state, number, read_json(folder / RESULT))
        state.on_change()

    @staticmethod
    def _complete(state: Board, number: int, result: dict[str, Any]) -> None:
        fit = result["fit"]
        attributes = {
            "epochs": fit["epochs"],
            "best_epoch": fit["best_epoch"],
            "seconds": fit["seconds"],
            "weights": result["weights"],
            "metrics": fit["best_metrics"],
        }
        state.record.complete(number, fit["best_metrics"][state.record.space.metric], attributes)
        _drop_students(state)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a search goes on from its study."""


def _failure(folder: Path, error: bool) -> str:
    if (folder / FAILURE).is_file():
        return (folder / FAILURE).read_text(encoding="utf-8").strip()
    if (folder / "error.txt").is_file():
        return (folder / "error.txt").read_text(encoding="utf-8").strip().splitlines()[-1]
    return "the worker died" if error else "the trial ended without a result"


def _drop_students(state: Board) -> None:
    """Only the best ``keep_top`` completed trials keep their student on disk."""
    ended = [
        t for t in state.record.trials() if t.value is not None and (state.folder / str(t.number) / STUDENT).exists()
    ]
    for trial in sorted(ended, key=lambda t: (-(t.value or 0.0), t.number))[state.keep_top :]:
        shutil.rmtree(state.folder / str(trial.number) / STUDENT)


class StudyScheduler(FIFOScheduler):
    """First come, first served; each epoch's value goes to the study, whose pruner may stop the trial."""

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """CONTINUE or STOP."""
        state = board()
        number = state.numbers[trial.trial_id]
        if "objective" not in result or not state.record.is_running(number):
            return TrialScheduler.CONTINUE
        if state.record.write_value(number, int(result["epoch"]), float(result["objective"])):
            state.record.prune(number)
            state.on_change()
            return TrialScheduler.STOP
        state.on_change()
        return TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Keep the traceback's text in the trial's folder before the end is told."""
        state = board()
        source = Path(trial.error_file) if trial.error_file else None
        target = state.folder / str(state.numbers[trial.trial_id])
        target.mkdir(parents=True, exist_ok=True)
        if source is not None and source.is_file():
            shutil.copyfile(source, target / "error.txt")


class NoLines(TrialProgressCallback):
    """In place of Tune's own lines about trials: the screen tells them."""

    def on_trial_result(self, *_: object, **__: object) -> None:
        """Nothing."""

    def on_trial_error(self, *_: object, **__: object) -> None:
        """Nothing."""

    def on_trial_complete(self, *_: object, **__: object) -> None:
        """Nothing."""


def execute(search_board: Board, trainable: Trainable, data: TrialData, settings: TuningSettings, gpus: int) -> None:
    """Run trials until the study holds the configured number, then shut Ray down.

    ``gpus`` is 0 where trials run on the CPU.
    """
    global _board
    os.environ.update(_ENVIRONMENT)
    # a worker imports `src`, and the user's own modules, wherever it was started
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    scratch = Path(tempfile.mkdtemp(prefix="anyo-"))
    _board = search_board
    try:
        # Ray listens on the network and looks for GPUs: its session lives in a short folder that is removed at the end
        ray.init(
            num_cpus=os.cpu_count(),
            num_gpus=gpus,
            include_dashboard=settings.dashboard,
            dashboard_host=settings.dashboard_host,
            log_to_driver=False,
            configure_logging=False,
            object_store_memory=settings.ray_memory_mb * 2**20,
            _temp_dir=str(scratch / "ray"),
        )
        # a failed trial's traceback lies in its folder; the screen tells it in a line
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        resources = {"cpu": max(settings.cpu_per_trial, 0.01), "gpu": settings.gpu_per_trial if gpus else 0}
        _run(trainable, data, settings, resources, scratch)
    finally:
        ray.shutdown()
        _board = None
        shutil.rmtree(scratch, ignore_errors=True)


def _run(
    trainable: Trainable, data: TrialData, settings: TuningSettings, resources: dict[str, float], scratch: Path
) -> None:
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(trainable, data=data), resources),
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
            callbacks=[NoLines()],
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    tuner.fit()
