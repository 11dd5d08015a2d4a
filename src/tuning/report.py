"""What a search leaves to be read: the trials table, and TensorBoard's curves and HParams comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from tensorboard.plugins.hparams.summary_v2 import HParam, Metric, hparams_config_pb, hparams_pb
from torch.utils.tensorboard import SummaryWriter

from src.core.paths import write_text
from src.tuning.dispatch import MEMORY_RETRIES, RESTARTS, Search
from src.tuning.study import Record

TRIALS_TABLE = "trials.csv"


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
    """`trials.csv`."""
    write_text(folder / TRIALS_TABLE, trials_frame(searches).to_csv(index=False))


def write_tensorboard(folder: Path, record: Record) -> None:
    """Every trial's curve, and one HParams table with all searched parameters, conditional ones too, and best values.

    The column list is written once for the whole search: taken from a single trial, as the usual callbacks do, it would
    lack the parameters that this trial did not have.
    """
    metric = record.space.metric
    others = [name for name in record.space.objectives if name != metric]
    with SummaryWriter(str(folder)) as writer:
        columns = [HParam(key) for key in record.space.parameters]
        shown = [Metric(f"best/{metric}", display_name=f"best {metric}"), *(Metric(name) for name in others)]
        writer._get_file_writer().add_summary(_as_torch_summary(hparams_config_pb(hparams=columns, metrics=shown)))
    highest = record.study.directions[0] == StudyDirection.MAXIMIZE
    for trial in record.trials():
        _write_trial(folder / f"trial_{trial.number:04d}", trial, metric, others, highest)


def _write_trial(folder: Path, trial: FrozenTrial, metric: str, others: list[str], highest: bool) -> None:
    with SummaryWriter(str(folder)) as writer:
        values = {
            key: value if isinstance(value, (bool, float, str)) else float(value) for key, value in trial.params.items()
        }
        writer._get_file_writer().add_summary(_as_torch_summary(hparams_pb(values, trial_id=str(trial.number))))
        for epoch, value in sorted(trial.intermediate_values.items()):
            writer.add_scalar(metric, value, epoch)
        if trial.intermediate_values:
            reported = trial.intermediate_values.values()
            best = max(reported) if highest else min(reported)
            writer.add_scalar(f"best/{metric}", best, len(trial.intermediate_values))
        if trial.state == TrialState.COMPLETE:
            for name, value in zip(others, trial.values[1:], strict=True):
                writer.add_scalar(name, value, len(trial.intermediate_values))


def _as_torch_summary(summary: Any) -> Any:
    """TensorBoard's own summary message; torch's writer takes it as it is."""
    return summary
