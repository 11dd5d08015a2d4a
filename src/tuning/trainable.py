"""One trial: a stage's plain training function in a worker, with a thread to the search and a checkpoint an epoch.

What it reports (`kind`):
  epoch   {epoch, objective, metrics, points}  after each epoch, its checkpoint being saved already
  points  {points}                      within a long epoch, for the curves alone
  done    {values, attributes}          trained to the end; values follow the space's objectives
  failed  {reason}                      this configuration cannot be trained
  memory  {reason}                      its share of the GPU was too small
  disk    {reason}                      nothing can be written: the search must pause
  defect  {traceback}                   what no trial should raise, in one that trains among others

A worker that trains a population (`src.tuning.member_trials`) tells of several trials at once:
  round   {round, reports: [[start, report], ...]}
"""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TextIO

import torch
from pydantic import TypeAdapter, ValidationError
from ray import tune

from src.core.checkpoints import pack, unpack
from src.core.data_utils import fingerprint
from src.core.errors import AnyoError, ArtefactError, Problem, ProblemsFound, TrainingFailed
from src.core.hardware import resolve_device, share_compute
from src.core.logging import get_logger
from src.core.memory import give_back, is_out_of_memory
from src.core.paths import disk_is_full, write_json
from src.core.seed import seed_everything
from src.core.settings import nested_plain
from src.core.watching import watching
from src.pipeline.settings import ExperimentSettings, training_seed, without_paths
from src.student.artefact import PRIOR
from src.tuning.dispatch import CHECKPOINT, MODEL
from src.tuning.gpu_probe import in_worker
from src.tuning.search_space import SearchSpace, Value
from src.tuning.shared_data import FOLDER, SharedData
from src.tuning.stage_functions import train_stage
from src.tuning.store import Store
from src.tuning.trained_model import TrainedModel
from src.tuning.trial_curves import CurveReporter
from src.tuning.trial_values import apply_values

_log = get_logger(__name__)

#: which start of the driver the store belongs to; a worker that outlived its driver finds another one and gives up
TOKEN = "driver.token"
LOG = "trial.log"
MESSAGE = "report"


def tell(report: Mapping[str, Any]) -> None:
    """Carry a report to the driver, as text: Tune would flatten nested values and mix its own keys in."""
    tune.report({MESSAGE: json.dumps(dict(report))})


def reason_of(error: AnyoError | ValidationError) -> str:
    """Why a configuration cannot be trained, in one line and in this project's words."""
    if isinstance(error, ValidationError):
        return "; ".join(_rule_broken(found) for found in error.errors(include_url=False))
    problems = error.problems if isinstance(error, ProblemsFound) else [error]
    return "; ".join(str(problem) for problem in problems)


def _rule_broken(found: Mapping[str, Any]) -> str:
    """A rule between fields says which ones it is about; a field's own rule does not."""
    said, where = str(found["msg"]), ".".join(str(part) for part in found["loc"])
    if found["type"] == "value_error":
        rule = said.removeprefix("Value error, ")
        return f"{where}: {rule}" if where else rule
    return str(Problem(where, found["input"], said))


class Superseded(Exception):
    """Another driver has taken over: this worker must not write."""


def require_current(store: Store, token: str) -> None:
    """Raises ``Superseded`` in a worker that outlived its driver: the trial is another worker's now."""
    if store.read(TOKEN) != token.encode():
        raise Superseded


@dataclass(frozen=True)
class TrialLog:
    """A trial's open log. ``keep`` brings it to where the trial's files are, unless it lies there already."""

    stream: TextIO
    keep: Callable[[], None]


@dataclass
class TrialCheckpoint:
    """A trial's last epoch in the store. A damaged one is told and trained anew, which gives the same epochs."""

    store: Store
    name: str
    identity: str
    token: str
    note: str = ""

    def load(self) -> Mapping[str, Any] | None:
        """As `Checkpoint.load`."""
        content = self.store.read(self.name)
        if content is None:
            return None
        try:
            return unpack(content, self.identity, self.name)
        except ArtefactError as error:
            self.note = f"trained again from the start: {error}"
            _log.warning(self.note)
            return None

    def save(self, state: Mapping[str, Any]) -> None:
        """As `Checkpoint.save`; raises ``Superseded`` in a worker that outlived its driver."""
        require_current(self.store, self.token)
        self.store.write(self.name, pack(state, self.identity))


class Trainable:
    """Importable and picklable, as Ray needs; called once a trial in a reused worker."""

    __name__ = "trial"

    def __init__(
        self, settings: ExperimentSettings, space: SearchSpace, store: Store, token: str, stall_minutes: float
    ) -> None:
        """``stall_minutes``: a worker that reports nothing for so long ends itself; 0: never."""
        # plain data: pydantic's generated classes do not all survive pickling between processes
        self.settings = nested_plain(settings)
        self.stage, self.objectives = space.stage, list(space.objectives)
        self.store, self.token, self.stall_minutes = store, token, stall_minutes

    def __call__(self, config: Mapping[str, Any]) -> None:
        """Train ``config = {number, values, folder, share, memory}`` and report how it ended; or a population, see
        `src.tuning.member_trials`."""
        try:
            if "members" in config:
                from src.tuning.member_trials import MemberTrials  # which knows this class

                MemberTrials(self, config).train()
            else:
                tell(self._run(config))
        except Superseded:
            _log.warning("another driver has taken over: %s", config.get("folder", "a population"))

    def _run(self, config: Mapping[str, Any]) -> dict[str, Any]:
        try:
            with self.log_file(str(config["folder"])) as log:
                return self._train(config, log)
        except (AnyoError, ValidationError, RuntimeError, OSError) as error:
            return self.end_by(error, float(config["share"]))

    def end_by(self, error: Exception, share: float) -> dict[str, Any]:
        """What an error of a trial means to the search; raises what no trial should raise."""
        if is_out_of_memory(error):
            return {"kind": "memory", "reason": f"out of GPU memory with a share of {share:.3g}: {error}"}
        if isinstance(error, (AnyoError, ValidationError)):
            return {"kind": "failed", "reason": reason_of(error)}
        if isinstance(error, OSError) and disk_is_full(error):
            return {"kind": "disk", "reason": f"the disk is full ({error.filename or self.store.root})"}
        raise error

    def settings_of(self, values: Mapping[str, Value], share: float) -> ExperimentSettings:
        """A trial's settings in its worker."""
        base = TypeAdapter(ExperimentSettings).validate_python(self.settings)
        return in_worker(apply_values(base, values), share)

    def checkpoint_of(self, settings: ExperimentSettings, folder: str) -> TrialCheckpoint:
        """What keeps a trial's state."""
        identity = fingerprint(self.stage, without_paths(settings))
        return TrialCheckpoint(self.store, f"{folder}/{CHECKPOINT}", identity, self.token)

    def _train(self, config: Mapping[str, Any], log: TrialLog) -> dict[str, Any]:
        settings = self.settings_of(config["values"], float(config["share"]))
        device = resolve_device(settings.runtime.device)
        clean_worker(training_seed(settings), device, config)
        checkpoint = self.checkpoint_of(settings, str(config["folder"]))
        with self.stall_watch(log.stream) as alive, self.store.scratch() as scratch:
            curves = CurveReporter(tell)

            def report(epoch: int, metrics: Mapping[str, float]) -> None:
                tell({**self.epoch_report(epoch, metrics), **curves.taken(metrics)})
                log.keep()
                alive()

            data = SharedData.load(self.store.download(FOLDER, Path(scratch)), device)
            with watching(curves):
                trained = train_stage(self.stage, settings, data, device, report, checkpoint)
            return self.finish(trained, config, checkpoint.note, Path(scratch))

    @contextmanager
    def stall_watch(self, log: TextIO) -> Iterator[Callable[[], None]]:
        """End this process, with its stack in the log, unless the yielded function is called often enough.

        A thread in C does it, because code that hangs may hold the interpreter. To the search the worker has died, and
        its trial goes on elsewhere from its last epoch.
        """

        def alive() -> None:
            if self.stall_minutes:
                faulthandler.dump_traceback_later(60 * self.stall_minutes, exit=True, file=log)

        alive()
        try:
            yield alive
        finally:
            faulthandler.cancel_dump_traceback_later()

    def epoch_report(self, epoch: int, metrics: Mapping[str, float]) -> dict[str, Any]:
        """What is told of an epoch; raises ``TrainingFailed`` where its first objective is missing or not finite."""
        metric = self.objectives[0]
        if metric not in metrics:
            raise TrainingFailed(f"{metric} is not among the metrics of epoch {epoch}: {sorted(metrics)}")
        value = float(metrics[metric])
        if not math.isfinite(value):
            raise TrainingFailed(f"{metric} of epoch {epoch} is {value}")
        return {"kind": "epoch", "epoch": epoch, "objective": value}

    def finish(self, trained: TrainedModel, config: Mapping[str, Any], note: str, scratch: Path) -> dict[str, Any]:
        """Save the model, then say so: a trial is complete only when its model is on disk.

        Args:
            trained: the model and how it was trained.
            config: what the worker was given of the trial.
            note: what the trials table says of its checkpoint; empty where there is nothing to say.
            scratch: a folder for the model on its way to the store.

        Returns:
            The trial's last report.

        Raises:
            TrainingFailed: an objective is not among the metrics.
            Superseded: another driver has taken over.
        """
        fit, wanted = trained.fit, set(self.objectives)
        found = {**fit.best_metrics, **trained.costs(wanted)}
        if missing := wanted - set(found):
            raise TrainingFailed(f"{', '.join(sorted(missing))} not among the metrics: {sorted(found)}")
        attributes = {
            "epochs": fit.epochs,
            "best_epoch": fit.best_epoch,
            "seconds": fit.seconds,
            "weights": trained.weights,
            "metrics": {name: float(value) for name, value in found.items()},
            **({"note": note} if note else {}),
        }
        require_current(self.store, self.token)
        trained.save(scratch / MODEL)
        write_json(scratch / MODEL / "trial.json", {"values": dict(config["values"]), **attributes})
        # a prior of V² numbers is the same in every student that has it
        self.store.upload(scratch / MODEL, f"{config['folder']}/{MODEL}", alike=PRIOR)
        return {"kind": "done", "values": [float(found[name]) for name in self.objectives], "attributes": attributes}

    @contextmanager
    def log_file(self, folder: str, listen: bool = True) -> Iterator[TrialLog]:
        """Everything that `src` logs meanwhile goes into the trial's own log, after what an earlier start wrote; among
        other trials, who ``listen``s decides for themselves when to.

        In a bucket it appears after each epoch: what a worker says while it dies is lost there.
        """
        local, name = self.store.local, f"{folder}/{LOG}"
        with self.store.scratch() if local is None else nullcontext(local / folder) as place:
            path = Path(place) / LOG
            path.parent.mkdir(parents=True, exist_ok=True)
            if local is None:
                path.write_bytes(self.store.read(name) or b"")
            with path.open("a", encoding="utf-8") as stream, logging_to(stream) if listen else nullcontext():

                def keep() -> None:
                    if local is None:
                        stream.flush()
                        self.store.write(name, path.read_bytes())

                try:
                    yield TrialLog(stream, keep)
                finally:
                    keep()


@contextmanager
def logging_to(stream: TextIO) -> Iterator[logging.StreamHandler[TextIO]]:
    """What `src` logs in this block goes into a stream, by the handler that is yielded."""
    handler, log = logging.StreamHandler(stream), logging.getLogger("src")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield handler
    finally:
        log.removeHandler(handler)


@cache
def _freeze_imports() -> None:
    """What a worker has imported stays: no later collection looks at it again (measured: 0.3 s before each trial)."""
    gc.collect()
    gc.freeze()


def clean_worker(seed: int, device: torch.device, config: Mapping[str, Any]) -> None:
    """Forget the trial before in a reused worker, and keep the coming one within its share of the GPU.

    Args:
        seed: of the coming trial.
        device: that it trains on.
        config: what the worker was given, its share of the GPU and of its memory among it.
    """
    _freeze_imports()
    share_compute(float(config["share"]))
    give_back(device)
    if device.type == "cuda":
        total, allowed = torch.cuda.get_device_properties(device).total_memory, int(config["memory"])
        torch.cuda.set_per_process_memory_fraction(min(allowed / total, 1.0) if allowed else 1.0, device)
    seed_everything(seed, "worker")
