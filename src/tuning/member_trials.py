"""A population of trials in one worker: each is prepared, reported, kept and finished as it would be alone."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from src.core.errors import AnyoError
from src.core.hardware import resolve_device
from src.core.logging import get_logger
from src.core.memory import give_back, is_out_of_memory
from src.core.population import Member, Population
from src.core.seed import reproducible
from src.core.training import FitResult, Fitting
from src.core.watching import watching
from src.pipeline.settings import training_seed
from src.tuning.shared_data import FOLDER, SharedData
from src.tuning.stage_functions import prepare_stage
from src.tuning.trainable import Superseded, Trainable, TrialCheckpoint, clean_worker, logging_to, tell
from src.tuning.trained_model import TrainedModel
from src.tuning.trial_curves import CurveReporter
from src.tuning.worker_trials import RoundDecision

_log = get_logger(__name__)

Report = dict[str, Any]

#: what is one trial's own when it is raised between two steps, a defect of its code among it: the others go on
_OF_ONE = (
    AnyoError, ValidationError, RuntimeError, OSError, ArithmeticError, AssertionError, AttributeError, LookupError,
    TypeError, ValueError,
)  # fmt: skip


@dataclass
class MemberReports:
    """What one trial has to tell in this round, and how it ended where it did."""

    start: int
    reports: list[Report] = field(default_factory=list)
    ended: bool = False

    def end(self, report: Report) -> None:
        """Its last report."""
        self.reports.append(report)
        self.ended = True


class TrialMember(Member):
    """A trial's fit among others. What goes wrong in it alone ends it alone, and it logs into its own file."""

    def __init__(
        self, config: Mapping[str, Any], fitting: Fitting, told: MemberReports, listen: Callable[[], None],
        end_by: Callable[[Exception], Report],
    ) -> None:  # fmt: skip
        super().__init__(fitting)
        self.config, self.told, self.listen, self._end_by = config, told, listen, end_by

    def advance(self, loss: Tensor | None = None) -> None:
        """As `Member.advance`; an error that is this trial's becomes its last report."""
        try:
            self.listen()
            super().advance(loss)
        except _OF_ONE as error:
            if is_out_of_memory(error):
                raise
            self.rows = None
            self.told.end(self._end_by(error))


class MemberTrials:
    """Trains ``config = {members: [{start, number, values, folder}], orders, share, memory}``, and whoever joins."""

    def __init__(self, trainable: Trainable, config: Mapping[str, Any]) -> None:
        self.trainable, self.config = trainable, config
        self.share = float(config["share"])
        self.told: dict[int, MemberReports] = {}
        self.members: dict[int, TrialMember] = {}
        self._logs: dict[int, ExitStack] = {}
        self._finish: dict[int, Callable[[FitResult], Report]] = {}
        self._told_in_turns: set[int] = set()
        self._rounds = 0

    def train(self) -> None:
        """Until no trial is left; raises ``Superseded`` when another driver has taken over."""
        first = self.config["members"][0]
        settings = self.trainable.settings_of(first["values"], self.share)
        device = resolve_device(settings.runtime.device)
        clean_worker(training_seed(settings), device, self.config)
        with (
            self.trainable.store.scratch() as scratch,
            reproducible(settings.student.threads),
            logging_to(sys.stderr) as self._handler,
            self._all_logs(),
        ):
            data = SharedData.load(self.trainable.store.download(FOLDER, Path(scratch)), device)
            self._join(self.config["members"], data, Path(scratch))
            # a member's own log is closed when it leaves: where a stalled worker stood is in Ray's log of it
            with self.trainable.stall_watch(sys.stderr) as alive:
                self._rounds_of(data, Path(scratch), device, alive)

    def _rounds_of(self, data: SharedData, scratch: Path, device: torch.device, alive: Callable[[], None]) -> None:
        population = Population()
        while self.told:
            try:
                population.epoch(list(self.members.values()))
            except (AnyoError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                for told in self.told.values():
                    told.end(self.trainable.end_by(error, self.share))
            if population.in_turns:
                self._tell_in_turns(population.in_turns)
            alive()
            joined = list(self._agree())
            for start, member in list(self.members.items()):
                if member.result is not None:
                    self.told[start].end(self._finish[start](member.result))
            if any(told.reports for told in self.told.values()):
                joined += self._agree()
            if joined:
                give_back(device)
                self._join(joined, data, scratch)

    # ------------------------------------------------------------------------------------------------ one trial

    def _join(self, configs: Sequence[Mapping[str, Any]], data: SharedData, scratch: Path) -> None:
        for config in configs:
            start = int(config["start"])
            told = self.told[start] = MemberReports(start)
            try:
                self._begin(start, config, data, scratch / f"{start}", told)
            except _OF_ONE as error:
                told.end(self._end_by(error))

    def _begin(
        self, start: int, config: Mapping[str, Any], data: SharedData, scratch: Path, told: MemberReports
    ) -> None:
        trainable, folder = self.trainable, str(config["folder"])
        log = self._logs.setdefault(start, ExitStack()).enter_context(trainable.log_file(folder, listen=False))

        # a round waits for everybody: by a clock that stands still nothing is sent within an epoch
        curves = CurveReporter(lambda points: told.reports.append(dict(points)), lambda: 0.0)

        def report(epoch: int, metrics: Mapping[str, float]) -> None:
            told.reports.append({**trainable.epoch_report(epoch, metrics), **curves.taken(metrics)})
            log.keep()

        def listen() -> None:
            self._handler.stream = log.stream  # `setStream` flushes, which every step would pay for

        listen()
        settings = trainable.settings_of(config["values"], self.share)
        checkpoint = trainable.checkpoint_of(settings, folder)
        fitting, finish = prepare_stage(trainable.stage, settings, data, report, checkpoint)
        member = TrialMember(config, fitting, told, listen, self._end_by)
        self.members[start] = member
        self._finish[start] = lambda result: self._finished(start, lambda: finish(result), checkpoint, scratch)
        with watching(curves):  # the loop asks once, when it begins
            member.advance()

    def _finished(
        self, start: int, finish: Callable[[], TrainedModel], checkpoint: TrialCheckpoint, scratch: Path
    ) -> Report:
        try:
            self.members[start].listen()
            scratch.mkdir(exist_ok=True)
            return self.trainable.finish(finish(), self.members[start].config, checkpoint.note, scratch)
        except _OF_ONE as error:
            return self._end_by(error)

    def _end_by(self, error: Exception) -> Report:
        """As `Trainable.end_by`; what that raises, because no trial should, ends this trial and no other."""
        try:
            return self.trainable.end_by(error, self.share)
        except type(error):
            return {"kind": "defect", "traceback": "".join(traceback.format_exception(error)).strip()}

    def _tell_in_turns(self, reason: str) -> None:
        """Into each member's own log, once."""
        for start, member in self.members.items():
            if start not in self._told_in_turns:
                self._told_in_turns.add(start)
                member.listen()
                _log.warning("it is trained in turns with others, not as one with them: %s", reason)

    @contextmanager
    def _all_logs(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._handler.stream = sys.stderr
            for stack in self._logs.values():
                stack.close()

    # ------------------------------------------------------------------------------------------------ the driver

    def _agree(self) -> Sequence[Mapping[str, Any]]:
        """Tell what there is to tell, and let go of whom the driver stops; returns who joins."""
        self._rounds += 1
        reports = [[told.start, report] for told in self.told.values() for report in told.reports]
        tell({"kind": "round", "round": self._rounds, "reports": reports})
        decided = RoundDecision.read(self.trainable.store, str(self.config["orders"]), self._rounds)
        if decided is None:
            raise Superseded
        for start, told in list(self.told.items()):
            told.reports.clear()
            if told.ended or start not in decided.stay:
                self._forget(start)
        return decided.joined

    def _forget(self, start: int) -> None:
        del self.told[start]
        self.members.pop(start, None)
        self._finish.pop(start, None)
        self._handler.stream = sys.stderr
        self._logs.pop(start, ExitStack()).close()
