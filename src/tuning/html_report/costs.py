"""What the search cost, and what stopping early saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import mean
from typing import Any

import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState

from src.tuning.html_report.blocks import Block, Figure, Note, Table
from src.tuning.html_report.sources import Result, Searched
from src.tuning.html_report.style import STATES, styled
from src.tuning.html_report.wording import count, duration, inert, number

_HOUR = 3600


@dataclass(frozen=True)
class Cost:
    """Seconds by state, epochs trained, and epochs that pruned trials did not train.

    ``usual`` is the mean number of epochs of a completed trial, ``None`` when none completed; ``saved`` counts up to
    it, ``saved_of_limit`` up to the configured number of epochs (``None`` when that is not known).
    """

    seconds: Mapping[TrialState, float]
    epochs: int
    usual: float | None
    pruned: int
    saved: float | None
    saved_of_limit: int | None


def epochs_of(trial: FrozenTrial) -> int:
    """Epochs that a trial trained: as it said at its end, else the last one it reported."""
    return int(trial.user_attrs.get("epochs") or max(trial.intermediate_values, default=0))


def seconds_of(trial: FrozenTrial) -> float:
    """Seconds of training: as the trial said at its end, else from its start to its end; 0 while it runs."""
    known = trial.user_attrs.get("seconds")
    return float(known) if known is not None else trial.duration.total_seconds() if trial.duration else 0.0


def cost(searched: Searched, limit: int | None) -> Cost:
    """The cost of a study whose trials may train ``limit`` epochs."""
    pruned = [epochs_of(trial) for trial in searched.having(TrialState.PRUNED)]
    completed = [epochs_of(trial) for trial in searched.completed()]
    usual = mean(completed) if completed else None
    return Cost(
        seconds={state: sum(map(seconds_of, searched.having(state))) for state in STATES},
        epochs=sum(map(epochs_of, searched.trials)),
        usual=usual,
        pruned=len(pruned),
        saved=None if usual is None else sum(max(0.0, usual - epochs) for epochs in pruned),
        saved_of_limit=None if limit is None else sum(max(0, limit - epochs) for epochs in pruned),
    )


def epoch_limit(result: Result) -> int | None:
    """Epochs that a trial may train, from the settings."""
    settings = result.settings
    path = ("teacher", "train") if result.manifest.get("kind") == "tune_teacher" else ("student",)
    for key in (*path, "loop", "epochs"):
        settings = settings.get(key) if isinstance(settings, Mapping) else None  # type: ignore[assignment]
    return int(settings) if isinstance(settings, int) else None


def cost_blocks(result: Result) -> Iterator[Block]:
    """Trial-hours, epochs saved, the run's own times, and the trials on a time line."""
    limit = epoch_limit(result)
    costs = [(searched, cost(searched, limit)) for searched in result.studies]
    if not costs:
        yield Note("There is no study in this folder, so its cost is not known.")
        return
    yield Note(_saved([each for searched, each in costs if searched.distinct], limit))
    yield _table(costs)
    if result.times:
        rows = [[name.replace("_", " "), duration(seconds)] for name, seconds in result.times.items()]
        yield Table(["this run", "time"], rows)
    else:
        yield Note("metrics/time.json is not in this folder: the times of the stages are not known.")
    if any(trial.datetime_start for searched in result.studies for trial in searched.trials):
        yield Figure(timeline(result.studies), "When each trial ran")


def _saved(costs: Sequence[Cost], limit: int | None) -> str:
    pruned = sum(each.pruned for each in costs)
    hours = duration(sum(seconds for each in costs for seconds in each.seconds.values()))
    start = f"The trials of the search trained for {hours} together."
    if not pruned:
        return f"{start} No trial was stopped early, so no epochs were saved."
    if any(each.saved is None for each in costs if each.pruned):
        return f"{start} Without a completed trial there is nothing to measure the {count(pruned, 'pruned trial')} by."
    saved, trained = sum(each.saved or 0.0 for each in costs), sum(each.epochs for each in costs)
    usual = mean([each.usual for each in costs if each.usual is not None])
    most = sum(each.saved_of_limit or 0 for each in costs)
    text = (
        f"{start} Stopping {count(pruned, 'trial')} early saved about {number(round(saved))} epochs beside the "
        f"{number(trained)} that were trained, if each would have trained as long as completed trials did on average "
        f"({usual:.1f} epochs)"
    )
    return f"{text}; against the limit of {limit} epochs, {number(most)}." if limit else f"{text}."


def _table(costs: Sequence[tuple[Searched, Cost]]) -> Table:
    headings = ["study", "trials", "trial-hours", "of completed", "of pruned", "of failed", "epochs trained", "saved"]
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    rows: list[list[Any]] = []
    for searched, each in costs:
        total = sum(each.seconds.values()) / _HOUR
        parts = [each.seconds[state] / _HOUR for state in states]
        saved = None if each.saved is None else round(each.saved)
        rows.append([searched.title, len(searched.trials), total, *parts, each.epochs, saved])
    if len(rows) > 1:
        rows.append(["all", *(sum(row[place] or 0 for row in rows) for place in range(1, len(headings)))])
    return Table(headings, rows, hints={"saved": "epochs saved by pruning, against the mean of completed trials"})


def timeline(studies: Sequence[Searched]) -> Any:
    """A bar from each trial's start to its end (a running one's: to the latest moment in the journal)."""
    trials = [trial for searched in studies for trial in searched.trials if trial.datetime_start]
    titles = {id(trial): searched.title for searched in studies for trial in searched.trials}
    trials.sort(key=lambda trial: trial.datetime_start or datetime.min)
    last = max(moment for trial in trials for moment in (trial.datetime_start, trial.datetime_complete) if moment)
    figure = go.Figure()
    for state, (name, colour) in STATES.items():
        lines = [(line, trial) for line, trial in enumerate(trials) if trial.state == state]
        starts = [trial.datetime_start for _, trial in lines]
        ends = [trial.datetime_complete or last for _, trial in lines]
        about = [f"{inert(titles[id(trial)])}, trial {trial.number}, {epochs_of(trial)} epochs" for _, trial in lines]
        bars = go.Bar(
            base=[moment.isoformat() for moment in starts if moment],
            x=[(end - start).total_seconds() * 1000 for start, end in zip(starts, ends, strict=True) if start],
            y=[line for line, _ in lines],
            orientation="h",
            marker={"color": colour},
            name=name,
            text=about,
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
        )
        figure.add_trace(bars)
    figure.update_xaxes(type="date")
    figure.update_yaxes(autorange="reversed", title="trials, by start", showticklabels=False, ticks="")
    return styled(figure, min(560, 120 + 11 * len(trials)), barmode="overlay", bargap=0.25)
