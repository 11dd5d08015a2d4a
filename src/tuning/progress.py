"""One screen while a search runs: how many trials are where, the best so far, the pace."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

from optuna.trial import TrialState
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from src.core.logging import console, get_logger
from src.tuning.study import Record

_log = get_logger(__name__)

_ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def format_values(values: dict[str, object]) -> str:
    """``lam 0.31, policy all``: the last part of each key, numbers shortened."""
    short = [(key.rsplit(".", 1)[-1], value) for key, value in values.items()]
    return ", ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in short)


@dataclass
class Screen:
    """Follows a record; on a terminal as a live display, elsewhere as one line an ended trial."""

    record: Record
    trials: int
    started: float = field(default_factory=time.perf_counter)
    _told: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        columns = (TextColumn("search"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console)
        self._task = self._bar.add_task("search", total=self.trials)
        self._live = Live(self._render(), console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Screen:
        if sys.stdout.isatty():
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live.is_started:
            self._live.stop()

    def update(self) -> None:
        """Show the record's state; called after each epoch and each end of a trial."""
        self._tell_ended()
        if self._live.is_started:
            self._live.update(self._render())

    def _count(self, state: TrialState) -> int:
        return sum(trial.state == state for trial in self.record.trials())

    def _render(self) -> Group:
        ended = sum(self._count(state) for state in _ENDED)
        self._bar.update(self._task, completed=ended)
        counts = ", ".join(f"{self._count(state)} {state.name.lower()}" for state in (*_ENDED, TrialState.RUNNING))
        epochs = sum(len(trial.intermediate_values) for trial in self.record.trials())
        pace = epochs / max(time.perf_counter() - self.started, 1e-9)
        return Group(self._bar, Text(f"{counts}; {pace:.2f} epochs/s"), Text(self._best()))

    def _best(self) -> str:
        best = self.record.best()
        if best is None:
            return "no finished trial yet"
        return f"best {self.record.space.metric} {best.value:.4f} (trial {best.number}: {format_values(best.params)})"

    def _tell_ended(self) -> None:
        for trial in self.record.trials():
            if trial.state not in _ENDED or trial.number in self._told:
                continue
            self._told.add(trial.number)
            outcome = {
                TrialState.COMPLETE: f"{self.record.space.metric} {trial.value or 0.0:.4f}",
                TrialState.PRUNED: f"stopped after {len(trial.intermediate_values)} epochs",
                TrialState.FAIL: f"failed: {trial.user_attrs.get('failure', 'unknown')}",
            }[trial.state]
            name = "no distillation" if trial.number == 0 else format_values(trial.params)
            _log.info("trial %d/%d  %s  (%s)", trial.number + 1, self.trials, outcome, name)
