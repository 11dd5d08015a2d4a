"""Which trial is worked on next, and what a report means. Decisions only: no Ray, no processes.

The record is written first, files are tidied second, so that an interruption anywhere leaves a state from which the
same decisions follow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace
from typing import Any, TypeVar

from optuna.trial import FrozenTrial, TrialState

from src.core.logging import get_logger
from src.tuning.search_space import Value
from src.tuning.store import Store
from src.tuning.study import Record

_log = get_logger(__name__)

T = TypeVar("T")

#: what a trial leaves in its folder: the best epoch's model, the last epoch's whole state, an unexpected exception
MODEL, CHECKPOINT, TRACEBACK = "model", "checkpoint.pt", "error.txt"
RESTARTS, MEMORY_RETRIES = "restarts", "memory_retries"


@dataclass(frozen=True)
class Job:
    """A trial handed to a worker. ``values`` are dotted configuration keys; ``start`` tells one start from another."""

    study: str
    number: int
    values: Mapping[str, Value]
    folder: str
    start: int
    memory_retries: int = 0
    restarts: int = 0
    #: trials of one group may train in one population; empty: this one trains alone
    group: str = ""

    @property
    def halvings(self) -> int:
        """How often its population is halved: whose fault it was that memory ran out, or that the worker died, is
        known when it is alone."""
        return self.memory_retries + self.restarts


def no_group(values: Mapping[str, Value]) -> str:
    """Every trial trains alone."""
    return ""


def own_values(trial: FrozenTrial) -> dict[str, Value]:
    """A trial's parameters, as they are."""
    return dict(trial.params)


def all_can_be_trained(trial: FrozenTrial) -> str:
    """No trial is refused."""
    return ""


@dataclass
class Search:
    """A record and how it is worked through: ``trials`` in all, files of the best ``keep`` stay.

    ``values`` turns a trial into configuration keys. ``place`` is the prefix of its trials' folders in the store.
    ``what`` and ``unit`` are what a person calls the search and one of its trials. Where every model is ``needed`` at
    the end, none is removed to make room. ``refuse`` says why a trial fails without being trained, or nothing.
    """

    record: Record
    trials: int
    keep: int
    values: Callable[[FrozenTrial], dict[str, Value]] = own_values
    place: str = ""
    what: str = "search"
    unit: str = "trial"
    needed: bool = False
    refuse: Callable[[FrozenTrial], str] = all_can_be_trained

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.record.study.study_name)

    def folder(self, number: int) -> str:
        """A trial's folder in the store."""
        return f"{self.place}{number}"


@dataclass
class Dispatcher:
    """Hands out the trials of one or more searches, one after the other, and takes their reports.

    ``phases`` are searches that follow when all these have ended, a group at a time: each is drawn up only then, since
    it may follow from what came out, and ``on_phase`` is told of it. ``over_bound`` tells why the result folder is too
    large, or nothing. ``halted`` is the reason why no more is handed out and nothing more is written: what runs is left
    for the next start. ``population_size`` is how many trials train as one, and ``group`` says which values can be
    trained in one.
    """

    searches: Sequence[Search]
    store: Store
    retries: int
    on_change: Callable[[], None] = lambda: None
    over_bound: Callable[[], str] = lambda: ""
    halted: str = ""
    population_size: int = 1
    group: Callable[[Mapping[str, Value]], str] = no_group
    phases: InitVar[Iterable[Sequence[Search]]] = ()
    on_phase: Callable[[Sequence[Search]], None] = lambda searches: None
    _phases: Iterator[Sequence[Search]] = field(init=False)
    _waiting: deque[Job] = field(default_factory=deque)
    _open: dict[int, Job] = field(default_factory=dict)
    _starts: int = 0
    _losses: int = 0  # since a trial ended
    _ended_at_loss: int = 0
    _bare: set[str] = field(default_factory=set)  # folders that have been tidied: a bucket charges for each request

    def __post_init__(self, phases: Iterable[Sequence[Search]]) -> None:
        self._phases = iter(phases)
        self._begin()
        while self._advance():  # past those that an earlier start has ended
            pass

    def _begin(self) -> None:
        """What an earlier start left open waits first."""
        for search in self.searches:
            for trial in search.record.running():
                if not self._refused(search, trial):
                    self._waiting.append(self._job(search, trial))
        self._losses, self._ended_at_loss = 0, self._ended()

    def _advance(self) -> bool:
        """Go on to the searches that follow, where these have ended; returns whether there are any."""
        following = next(self._phases, None) if self.finished and not self.halted else None
        if following is None:
            return False
        self.searches = following
        self._begin()
        self.on_phase(following)
        return True

    # ------------------------------------------------------------------------------------------------ handing out

    def next(self) -> Job | None:
        """The next trial to work on: an interrupted one first, then a new one; None where there is nothing now."""
        job = self._guarded(self._next, None)
        if job is not None:
            self._open[job.start] = job
            self.on_change()
        return job

    def _next(self) -> Job | None:
        while not self.halted:
            job = self._waiting.popleft() if self._waiting else self._new()
            if job is not None or not self._advance():
                return job
        return None

    def together(self) -> list[Job]:
        """The next trial, and those that train in one population with it; nothing where there is nothing now."""
        first = self.next()
        if first is None:
            return []
        # one that ran out of memory, or whose worker died, comes back among fewer
        return [first, *self.companions(first, self.room(first) - 1)]

    def room(self, job: Job) -> int:
        """How many trials a population holds that begins with this one."""
        return max(1, self.population_size >> job.halvings) if job.group else 1

    def companions(self, job: Job, free: int) -> list[Job]:
        """Up to ``free`` more trials of a trial's group, new ones too. New ones of other groups wait for their turn,
        no more than a population holds."""
        found = [waiting for waiting in self._waiting if self._fits(waiting, job)][: max(free, 0)]
        for waiting in found:
            self._waiting.remove(waiting)
        while len(found) < free and len(self._waiting) < self.population_size and not self.halted:
            new = self._guarded(self._new, None)
            if new is None:
                break
            (found if self._fits(new, job) else self._waiting).append(new)
        for member in found:
            self._open[member.start] = member
        if found:
            self.on_change()
        return found

    @staticmethod
    def _fits(other: Job, job: Job) -> bool:
        return bool(job.group) and other.group == job.group and other.halvings <= job.halvings

    def _new(self) -> Job | None:
        for search in self.searches:
            while len(search.record.trials()) < search.trials:
                self._keep_inside_bound()
                if self.halted:
                    return None
                trial = search.record.ask()
                if not self._refused(search, trial):
                    return self._job(search, trial)
        return None

    def _refused(self, search: Search, trial: FrozenTrial) -> bool:
        """Whether a trial cannot be trained at all, and has failed by that."""
        reason = search.refuse(trial)
        if reason:
            search.record.fail(trial.number, reason)
        return bool(reason)

    def _job(self, search: Search, trial: FrozenTrial) -> Job:
        self._starts += 1
        retries, restarts = (int(trial.user_attrs.get(counter, 0)) for counter in (MEMORY_RETRIES, RESTARTS))
        folder = search.folder(trial.number)
        values = search.values(trial)
        # a search's first trial repeats the baseline bit by bit
        group = self.group(values) if self.population_size > 1 and trial.number > 0 else ""
        return Job(search.name, trial.number, values, folder, self._starts, retries, restarts, group)

    def job(self, start: int) -> Job | None:
        """What was handed out with this start; None when it has ended."""
        return self._open.get(start)

    @property
    def running(self) -> Sequence[Job]:
        """What was handed out and has not ended."""
        return list(self._open.values())

    @property
    def finished(self) -> bool:
        """Whether every search has its number of ended trials; what follows them is drawn up by `next`."""
        return all(search.record.ended() >= search.trials for search in self.searches)

    def halt(self, reason: str) -> None:
        """End in order: nothing is handed out or written from now on."""
        self.halted = self.halted or reason

    # ------------------------------------------------------------------------------------------------ taking reports

    def on_report(self, start: int, report: Mapping[str, Any]) -> bool:
        """Take a report in; returns whether the worker should stop. See `Trainable` for the kinds."""
        if start not in self._open or self.halted:
            return True
        stop = self._guarded(lambda: self._take(self._open[start], report), True)
        self.on_change()
        return stop

    def on_end(self, start: int) -> None:
        """A worker is through; a trial that never said how it ended has failed."""
        self._settle(start, "the training function ended without a result")

    def on_error(self, start: int, traceback: str) -> None:
        """A worker raised something that no trial should raise: a defect, which another try would only repeat."""
        if start in self._open:
            self._guarded(lambda: self._keep_traceback(self._open[start], traceback), None)
        self._settle(start, traceback.splitlines()[-1])

    def _keep_traceback(self, job: Job, traceback: str) -> None:
        self.store.write(f"{job.folder}/{TRACEBACK}", f"{traceback}\n".encode())

    def on_death(self, start: int, reason: str) -> None:
        """A worker died (killed, node lost): its trial goes on from its last checkpoint, some times."""
        job = self._open.pop(start, None)
        if job is not None and not self.halted:
            self._guarded(lambda: self._again(job, RESTARTS, reason), None)
        self.on_change()

    def on_loss(self, starts: Sequence[int], reason: str) -> None:
        """A worker was ended for a reason outside of its trials: a death, which must not fail trial after trial on a
        machine that is full. Where retries are used up and no trial ended meanwhile, the search halts instead."""
        meanwhile = self._ended() != self._ended_at_loss
        self._losses = 1 if meanwhile else self._losses + 1
        jobs = [self._open[start] for start in starts if start in self._open]
        used_up = self._losses > self.retries and any(self._tried(job, RESTARTS) >= self.retries for job in jobs)
        if used_up and not meanwhile:
            self.halt(f"{reason} ({self._losses} times, and no trial ended in between)")
        for start in starts:
            self.on_death(start, reason)
        self._ended_at_loss = self._ended()  # one that failed by being lost is none that ended meanwhile

    def _ended(self) -> int:
        return sum(search.record.ended() for search in self.searches)

    def _settle(self, start: int, reason: str) -> None:
        job = self._open.pop(start, None)
        if job is not None and not self.halted:
            self._guarded(lambda: self._fail(job, reason), None)
        self.on_change()

    def _take(self, job: Job, report: Mapping[str, Any]) -> bool:
        record, kind = self._search(job).record, report.get("kind")
        if kind == "epoch":
            if not record.write_value(job.number, int(report["epoch"]), float(report["objective"])):
                return False
            record.prune(job.number)
        elif kind == "done":
            record.complete(job.number, report["values"], report["attributes"])
        elif kind == "memory":
            self._open.pop(job.start)
            self._again(job, MEMORY_RETRIES, str(report["reason"]))
            return True
        elif kind == "disk":
            self.halt(str(report["reason"]))
            return True
        elif kind == "defect":
            self._keep_traceback(job, str(report["traceback"]))
            record.fail(job.number, str(report["traceback"]).splitlines()[-1])
        else:
            reason = report["reason"] if kind == "failed" else f"a report without a known kind: {sorted(report)}"
            record.fail(job.number, str(reason))
        self._open.pop(job.start)
        self._tidy(self._search(job))
        return True

    def _tried(self, job: Job, counter: str) -> int:
        return int(self._search(job).record.trials()[job.number].user_attrs.get(counter, 0))

    def _again(self, job: Job, counter: str, reason: str) -> None:
        record, tried = self._search(job).record, self._tried(job, counter)
        # in a population it may have been another one's fault
        among_others = self.room(job) > 1
        if tried >= self.retries and not among_others:
            self._fail(job, f"{reason} (tried {tried + 1} times)")
            return
        record.note(job.number, {counter: tried + 1})
        _log.warning("trial %d goes on: %s", job.number, reason)
        self._starts += 1
        retries, restarts = job.memory_retries, job.restarts
        retries, restarts = (retries + 1, restarts) if counter == MEMORY_RETRIES else (retries, restarts + 1)
        self._waiting.append(replace(job, start=self._starts, memory_retries=retries, restarts=restarts))

    def _fail(self, job: Job, reason: str) -> None:
        self._search(job).record.fail(job.number, reason)
        self._tidy(self._search(job))

    # ------------------------------------------------------------------------------------------------ files

    def _tidy(self, search: Search, keep: int | None = None) -> None:
        """Only the best ``keep`` of the completed trials, and the Pareto front, keep their model and checkpoint."""
        kept = {trial.number for trial in search.record.ranked()[: search.keep if keep is None else keep]}
        if len(search.record.space.objectives) > 1:
            kept |= set(search.record.front())
        for trial in search.record.trials():
            folder = search.folder(trial.number)
            if trial.state.is_finished() and trial.number not in kept and folder not in self._bare:
                for name in (MODEL, CHECKPOINT):
                    self.store.remove(f"{folder}/{name}")
                self._bare.add(folder)

    def keep(self, name: str, content: bytes) -> None:
        """Write a file into the store; the search is halted where that fails."""
        if not self.halted:
            self._guarded(lambda: self.store.write(name, content), None)

    def _keep_inside_bound(self) -> None:
        if self.over_bound():
            for search in self.searches:
                if not search.needed:
                    self._tidy(search, keep=1)
        if reason := self.over_bound():
            self.halt(reason)

    def _search(self, job: Job) -> Search:
        return next(search for search in self.searches if search.name == job.study)

    def _guarded(self, work: Callable[[], T], otherwise: T) -> T:
        """A record that cannot be written ends the search in order: what follows would not be recorded either."""
        try:
            return work()
        except OSError as error:
            self.halt(f"the record cannot be written ({error.strerror or error})")
            return otherwise


def states(searches: Sequence[Search]) -> dict[TrialState, int]:
    """How many trials of some searches are in each state."""
    counts = dict.fromkeys((TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING), 0)
    for search in searches:
        for trial in search.record.trials():
            counts[trial.state] = counts.get(trial.state, 0) + 1
    return counts
