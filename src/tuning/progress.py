"""One screen while a search runs: where each trial is, the best so far beside the baseline, the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial, TrialState
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from src.core.logging import console, get_logger, is_terminal
from src.core.timing import duration
from src.tuning.dispatch import Search, states

_log = get_logger(__name__)

_ENDED = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "stopped early", TrialState.FAIL: "failed"}


def format_values(values: Mapping[str, object]) -> str:
    """``lam 0.31, policy all``: the last part of each key, numbers shortened."""
    short = [(key.rsplit(".", 1)[-1], value) for key, value in values.items()]
    return ", ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in short)


#: seconds between two lines about the whole search, where no terminal shows it
_EVERY = 30.0
#: running trials that are shown: a population has many
_SHOWN = 8


@dataclass(frozen=True)
class Baseline:
    """The student alone: what a search is seen beside, and the pace that is expected before it has one of its own."""

    metrics: Mapping[str, float]
    epochs: int
    seconds: float


def epoch_of(trial: FrozenTrial) -> int:
    """The last epoch that a trial reported; 0 before the first."""
    return max(trial.intermediate_values, default=0)


def epochs_left(search: Search, baseline: Baseline | None) -> float:
    """About how many epochs a search has to train: a trial takes as many as those that ended did on average, before
    that as many as the baseline's, or else the most that it may."""
    trials = search.record.trials()
    ended = [epoch_of(trial) for trial in trials if trial.state.is_finished() and trial.intermediate_values]
    usual = sum(ended) / len(ended) if ended else float(baseline.epochs if baseline else search.record.epochs)
    begun = sum(max(usual - epoch_of(trial), 1.0) for trial in search.record.running())
    return begun + usual * max(search.trials - len(trials), 0)


@dataclass
class SearchDisplay:
    """Follows searches; on a terminal as a live display, elsewhere as a line for each ended trial and one now and then.

    Args:
        searches: what is worked through together.
        first_name: what the first trial is called in place of its parameters.
        baseline: the student alone, where it can be compared with the trials.
        then: what follows when the last trial has ended.
        clock: counts seconds.
    """

    searches: Sequence[Search]
    first_name: str = ""
    baseline: Baseline | None = None
    then: str = ""
    clock: Callable[[], float] = time.perf_counter
    _told: set[tuple[str, int]] = field(default_factory=set)
    #: when the first epoch came, and how many had come by then
    _first: tuple[float, int] | None = None

    def __post_init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = Progress(*columns, console=console)
        self._said = self.clock()
        self._task = self._bar.add_task("", left="")
        self._begin()
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)

    def _begin(self) -> None:
        """What ended before is not told; a worker's start is no part of the pace."""
        self._trials = sum(search.trials for search in self.searches)
        self._bar.reset(self._task, description=self._what, total=self._trials)
        self._told = set()
        self._told = {(search.name, trial.number) for search, trial in self._untold()}
        self._epochs_before, self._first = self._epochs(), None

    def follow(self, searches: Sequence[Search]) -> None:
        """Show the searches that come after those that were followed until now."""
        self.searches, self.first_name, self.then = searches, "", ""
        self._begin()
        self._tell_ended()

    def _tell_ended(self) -> None:
        if self._told:
            _log.info("going on after %d ended trials", len(self._told))

    def __enter__(self) -> SearchDisplay:
        self._tell_ended()
        if is_terminal():
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live.is_started:
            self._live.stop()

    def update(self) -> None:
        """Tell of trials that have ended meanwhile; the live display refreshes by itself."""
        if self._first is None and self._epochs() > self._epochs_before:
            self._first = (self.clock(), self._epochs())
        for search, trial in self._untold():
            self._told.add((search.name, trial.number))
            _log.info("%s", self._line(search, trial))
        if not is_terminal() and self.clock() - self._said >= _EVERY:
            self._said = self.clock()
            _log.info("%s", self._now())

    # ------------------------------------------------------------------------------------------------ what is told

    @property
    def _what(self) -> str:
        return self.searches[0].what if self.searches else "search"

    def _now(self) -> str:
        """How far the searches are, in one line."""
        running = [
            f"{self._name(search, trial)} {self._place(trial, search.record.epochs, 'at ')}{self._last(trial, ' ({})')}"
            for search, trial in self._running()
        ]
        parts = [
            f"{self._what}: {self._ended()} of {self._trials} {self.searches[0].unit}s ended",
            ", ".join([*running[:_SHOWN], *self._more(len(running))]),
            *(self._best(search, trial) for search, trial in self._leading()),
            *self._beside(),
            self._time_left(),
            self.then,
        ]
        return "; ".join(part for part in parts if part)

    def _line(self, search: Search, trial: FrozenTrial) -> str:
        """A trial that has ended."""
        outcome = {
            TrialState.COMPLETE: ", ".join(
                f"{name} {value:.4g}"
                for name, value in zip(search.record.space.objectives, trial.values or (), strict=False)
            ),
            TrialState.PRUNED: f"stopped after {len(trial.intermediate_values)} epochs",
            TrialState.FAIL: f"failed: {trial.user_attrs.get('failure', 'unknown')}",
        }[trial.state]
        ended = f"{search.record.ended()} of {search.trials}"
        return f"{self._name(search, trial)}  {outcome}  ({self._called(trial)}; {ended})"

    def _render(self) -> Group:
        self._bar.update(self._task, completed=self._ended(), left=self._time_left())
        table = Table.grid(padding=(0, 2), expand=True)
        for _ in range(3):
            table.add_column(no_wrap=True)
        # what the parameters do not find room for is cut, and no other column for their sake
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        running = list(self._running())
        for search, trial in running[:_SHOWN]:
            metric, place = search.record.space.metric, self._place(trial, search.record.epochs)
            value = self._last(trial, f"{metric} {{}}")
            table.add_row(self._name(search, trial), place, value, self._called(trial))
        for told in self._more(len(running)):
            table.add_row(told)
        for search, best in self._leading():
            value = f"{search.record.space.metric} {best.values[0]:.4f}"
            name, which = self._named(search, "best"), f"{search.unit} {best.number}"
            table.add_row(name, which, value, self._called(best), style="bold")
        for told in self._beside():
            name, _, value = told.partition(" ")
            table.add_row(name, "", value)
        counts = states(self.searches)
        words = [f"{counts[state]} {word}" for state, word in _ENDED.items()]
        pace = self._pace()
        said = [", ".join(words), f"{pace:.2f} epochs a second" if pace else "", self.then]
        return Group(self._bar, table, Text("; ".join(part for part in said if part), style="dim"))

    # ------------------------------------------------------------------------------------------------ its parts

    def _running(self) -> Iterator[tuple[Search, FrozenTrial]]:
        return ((search, trial) for search in self.searches for trial in search.record.running())

    def _leading(self) -> Iterator[tuple[Search, FrozenTrial]]:
        """Each search's best trial so far."""
        for search in self.searches:
            if (best := search.record.best()) is not None:
                yield search, best

    def _untold(self) -> list[tuple[Search, FrozenTrial]]:
        return [
            (search, trial)
            for search in self.searches
            for trial in search.record.trials()
            if trial.state in _ENDED and (search.name, trial.number) not in self._told
        ]

    def _named(self, search: Search, what: str) -> str:
        return what if len(self.searches) == 1 else f"{search.name}: {what}"

    def _name(self, search: Search, trial: FrozenTrial) -> str:
        return self._named(search, f"{search.unit} {trial.number}")

    def _called(self, trial: FrozenTrial) -> str:
        return self.first_name if self.first_name and trial.number == 0 else format_values(trial.params)

    @staticmethod
    def _more(running: int) -> list[str]:
        """What stands for the running trials that are not shown."""
        return [f"and {running - _SHOWN} more"] if running > _SHOWN else []

    @staticmethod
    def _place(trial: FrozenTrial, epochs: int, at: str = "") -> str:
        epoch = epoch_of(trial)
        return f"{at}epoch {epoch} of {epochs}" if epoch else "begins"

    @staticmethod
    def _last(trial: FrozenTrial, form: str) -> str:
        """The value after the last epoch."""
        epoch = epoch_of(trial)
        return form.format(f"{trial.intermediate_values[epoch]:.4f}") if epoch else ""

    def _best(self, search: Search, best: FrozenTrial) -> str:
        what = f"{search.unit} {best.number}: {self._called(best)}"
        return self._named(search, f"best {search.record.space.metric} {best.values[0]:.4f} ({what})")

    def _beside(self) -> list[str]:
        """The baseline's value, where it has one."""
        metric = self.searches[0].record.space.metric
        value = None if self.baseline is None else self.baseline.metrics.get(metric)
        return [] if value is None else [f"baseline {metric} {value:.4f}"]

    # ------------------------------------------------------------------------------------------------ counting

    def _epochs(self) -> int:
        return sum(epoch_of(trial) for search in self.searches for trial in search.record.trials())

    def _ended(self) -> int:
        return sum(search.record.ended() for search in self.searches)

    def _pace(self) -> float | None:
        """Epochs a second, since the first one came; None where none has followed it yet."""
        if self._first is None:
            return None
        since, before = self._first
        seconds, epochs = self.clock() - since, self._epochs() - before
        return epochs / seconds if seconds > 0 and epochs >= max(1, len(list(self._running()))) else None

    def _time_left(self) -> str:
        """The time that these searches still take; measured, or else estimated from the baseline."""
        pace, how = self._pace(), ""
        if pace is None and self.baseline is not None and min(self.baseline.epochs, self.baseline.seconds) > 0:
            at_once = max(1, len(list(self._running())))
            pace, how = (
                at_once * self.baseline.epochs / self.baseline.seconds,
                " (estimated from the baseline)",
            )
        if pace is None:
            return "time left: unknown"
        left = sum(epochs_left(search, self.baseline) for search in self.searches)
        return f"about {duration(left / pace)} left{how}"
