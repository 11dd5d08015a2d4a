"""One screen while a search runs: how many trials are where, the best so far, the pace."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial, TrialState
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from src.core.logging import console, get_logger, is_terminal
from src.tuning.dispatch import Search, states

_log = get_logger(__name__)

_ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def format_values(values: dict[str, object]) -> str:
    """``lam 0.31, policy all``: the last part of each key, numbers shortened."""
    short = [(key.rsplit(".", 1)[-1], value) for key, value in values.items()]
    return ", ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in short)


#: seconds between two lines about the whole search, where no terminal shows it
_EVERY = 30.0


@dataclass
class Screen:
    """Follows searches; on a terminal as a live display, elsewhere as a line for each ended trial and one now and then.

    ``clock`` counts seconds.
    """

    searches: Sequence[Search]
    first_name: str = ""
    clock: Callable[[], float] = time.perf_counter
    _told: set[tuple[str, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        columns = (
            TextColumn("search"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = Progress(*columns, console=console)
        self.started = self._said = self.clock()
        self._task = self._bar.add_task("search", total=sum(search.trials for search in self.searches), left="")
        self._told = {(search.name, trial.number) for search, trial in self._untold()}
        self._ended_before = len(self._told)
        self._epochs_before = self._epochs()
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Screen:
        if self._told:
            _log.info("going on after %d ended trials", len(self._told))
        if sys.stdout.isatty():
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live.is_started:
            self._live.stop()

    def update(self) -> None:
        """Tell of trials that have ended meanwhile; the live display refreshes by itself."""
        for search, trial in self._untold():
            self._told.add((search.name, trial.number))
            _log.info("%s", self._line(search, trial))
        if not is_terminal() and self.clock() - self._said >= _EVERY:
            self._said = self.clock()
            _log.info("%s", self._now())

    def _now(self) -> str:
        """Where the searches are, in one line."""
        counts = states(self.searches)
        ended, trials = sum(counts[state] for state in _ENDED), sum(search.trials for search in self.searches)
        epochs = [
            f"trial {trial.number} at epoch {len(trial.intermediate_values)}"
            for search in self.searches
            for trial in search.record.running()
        ]
        best = "; ".join(self._best(search) for search in self.searches if search.record.best() is not None)
        left = self._time_left(ended, max(self.clock() - self.started, 1e-9))
        parts = [f"search: {ended} of {trials} trials ended", ", ".join(epochs), best, left]
        return "; ".join(part for part in parts if part)

    def _epochs(self) -> int:
        return sum(len(trial.intermediate_values) for search in self.searches for trial in search.record.trials())

    def _render(self) -> Group:
        counts = states(self.searches)
        ended = sum(counts[state] for state in _ENDED)
        seconds = max(self.clock() - self.started, 1e-9)
        self._bar.update(self._task, completed=ended, left=self._time_left(ended, seconds))
        words = ", ".join(f"{count} {state.name.lower()}" for state, count in counts.items())
        pace = (self._epochs() - self._epochs_before) / seconds
        best = [Text(self._best(search)) for search in self.searches]
        return Group(self._bar, Text(f"{words}; {pace:.2f} epochs/s"), *best)

    def _time_left(self, ended: int, seconds: float) -> str:
        here = ended - self._ended_before
        if here <= 0:
            return "time left: unknown"
        left = round(seconds / here * (self._bar.tasks[0].total or 0.0) - seconds / here * ended)
        return f"about {left // 60} min {left % 60} s left"

    def _best(self, search: Search) -> str:
        name = "" if len(self.searches) == 1 else f"{search.name}: "
        best = search.record.best()
        if best is None:
            return f"{name}no finished trial yet"
        value, values = best.values[0], format_values(best.params)
        return f"{name}best {search.record.space.metric} {value:.4f} (trial {best.number}: {values})"

    def _untold(self) -> list[tuple[Search, FrozenTrial]]:
        return [
            (search, trial)
            for search in self.searches
            for trial in search.record.trials()
            if trial.state in _ENDED and (search.name, trial.number) not in self._told
        ]

    def _line(self, search: Search, trial: FrozenTrial) -> str:
        outcome = {
            TrialState.COMPLETE: ", ".join(
                f"{name} {value:.4g}"
                for name, value in zip(search.record.space.objectives, trial.values or (), strict=False)
            ),
            TrialState.PRUNED: f"stopped after {len(trial.intermediate_values)} epochs",
            TrialState.FAIL: f"failed: {trial.user_attrs.get('failure', 'unknown')}",
        }[trial.state]
        name = "" if len(self.searches) == 1 else f"{search.name} "
        what = self.first_name if self.first_name and trial.number == 0 else format_values(trial.params)
        ended = f"{search.record.ended()} of {search.trials}"
        return f"{name}trial {trial.number}  {outcome}  ({what}; {ended})"
