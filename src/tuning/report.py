"""What a search leaves to be read: the trials table, and the tracker's curves and comparison (TensorBoard: HParams)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from src.core.paths import write_text
from src.core.result_files import TRIALS_TABLE
from src.pipeline.tracking import Outcome, Tracker, by_epoch
from src.tuning.dispatch import MEMORY_RETRIES, RESTARTS, Search
from src.tuning.study import Record
from src.tuning.trial_curves import run_name, table_name


def trials_frame(searches: Sequence[Search]) -> pd.DataFrame:
    """One line a trial: number, state, objectives, epochs, seconds, every searched parameter, metrics, failure.

    With several searches the first column names the study.
    """
    lines = []
    for search in searches:
        study = {"study": search.name} if len(searches) > 1 else {}
        front = set(search.record.front()) if len(search.record.space.objectives) > 1 else None
        for trial in search.record.trials():
            pareto = {} if front is None else {"pareto": trial.number in front}
            space = search.record.space
            lines.append({**study, **trial_line(trial, list(space.objectives), list(space.parameters)), **pareto})
    return pd.DataFrame(lines)


def trial_line(trial: FrozenTrial, objectives: Sequence[str], parameters: Sequence[str]) -> dict[str, Any]:
    """A trial as `trials.csv` and `report.html` list it; what it does not have is ``None``."""
    attributes = trial.user_attrs
    seconds = trial.duration.total_seconds() if trial.duration else None
    complete = trial.state == TrialState.COMPLETE
    values = trial.values if complete else [None] * len(objectives)
    metrics = {k: v for k, v in attributes.get("metrics", {}).items() if k not in objectives}
    return {
        "trial": trial.number,
        "state": trial.state.name,
        **dict(zip(objectives, values, strict=True)),
        "epochs": len(trial.intermediate_values),
        "best_epoch": attributes.get("best_epoch"),
        "seconds": attributes.get("seconds", seconds),
        **{key: trial.params.get(key) for key in parameters},
        **metrics,
        RESTARTS: attributes.get(RESTARTS, 0),
        MEMORY_RETRIES: attributes.get(MEMORY_RETRIES, 0),
        "failure": attributes.get("failure"),
        "note": attributes.get("note"),
    }


def write_trials_table(folder: Path, searches: Sequence[Search]) -> None:
    """Write `trials.csv`."""
    write_text(folder / TRIALS_TABLE, trials_frame(searches).to_csv(index=False))


def write_outcomes(tracker: Tracker, record: Record, test: Mapping[int, Mapping[str, float]] | None = None) -> None:
    """Every trial's curve, and one table: searched parameters, conditional ones too, and what came of each trial.

    Args:
        tracker: has the points that were drawn while the trials trained.
        record: of the search.
        test: metrics on the test split of the trials that it was opened for.
    """
    study, metric = str(record.study.study_name), record.space.metric
    highest = record.study.directions[0] == StudyDirection.MAXIMIZE
    outcomes = []
    for trial in record.trials():
        name, reported = run_name(study, trial.number), trial.intermediate_values
        if reported:
            run = tracker.run(name)
            for epoch, value in sorted(reported.items()):
                run.log("epoch", epoch, by_epoch({metric: value}))
            run.close()
        results = _results(trial, metric, highest)
        if trial.state == TrialState.COMPLETE:
            results |= dict(zip(list(record.space.objectives)[1:], trial.values[1:], strict=True))
        results |= {f"test/{key}": value for key, value in (test or {}).get(trial.number, {}).items()}
        outcomes.append(Outcome(name, trial.params, results, len(reported)))
    tracker.table(table_name(study), list(record.space.parameters), outcomes)


def _results(trial: FrozenTrial, metric: str, highest: bool) -> dict[str, float | str]:
    """State, epochs and seconds of a trial, and its best value."""
    found: dict[str, float | str] = {"state": trial.state.name.lower(), "epochs": len(trial.intermediate_values)}
    seconds = trial.user_attrs.get("seconds", trial.duration.total_seconds() if trial.duration else None)
    if seconds is not None:
        found["seconds"] = float(seconds)
    if reported := trial.intermediate_values.values():
        found[f"best/{metric}"] = max(reported) if highest else min(reported)
    return found
