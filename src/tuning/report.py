"""What a search leaves to be read: the trials table, and TensorBoard's curves and HParams comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial, TrialState
from tensorboard.plugins.hparams.summary_v2 import HParam, Metric, hparams_config_pb, hparams_pb
from torch.utils.tensorboard import SummaryWriter

from src.core.paths import write_text
from src.tuning.search_space import SearchSpace
from src.tuning.study import Record

TRIALS_TABLE = "trials.csv"


def trials_frame(record: Record) -> pd.DataFrame:
    """One line a trial: number, state, objective, epochs, seconds, every searched parameter, metrics, failure."""
    return pd.DataFrame([_line(trial, record.space) for trial in record.trials()])


def _line(trial: FrozenTrial, space: SearchSpace) -> dict[str, Any]:
    attributes = trial.user_attrs
    seconds = trial.duration.total_seconds() if trial.duration else None
    metrics = {name: value for name, value in attributes.get("metrics", {}).items() if name != space.metric}
    return {
        "trial": trial.number,
        "state": trial.state.name,
        space.metric: trial.value if trial.state == TrialState.COMPLETE else None,
        "epochs": len(trial.intermediate_values),
        "best_epoch": attributes.get("best_epoch"),
        "seconds": attributes.get("seconds", seconds),
        **{key: trial.params.get(key) for key in space.parameters},
        **metrics,
        "failure": attributes.get("failure"),
    }


def write_trials_table(folder: Path, record: Record) -> None:
    """`trials.csv`."""
    write_text(folder / TRIALS_TABLE, trials_frame(record).to_csv(index=False))


def write_tensorboard(folder: Path, record: Record) -> None:
    """Every trial's curve, and one HParams table with all searched parameters, conditional ones too, and best values.

    The column list is written once for the whole search: taken from a single trial, as the usual callbacks do, it would
    lack the parameters that this trial did not have.
    """
    metric = record.space.metric
    with SummaryWriter(str(folder)) as writer:
        columns = [HParam(key) for key in record.space.parameters]
        config = hparams_config_pb(hparams=columns, metrics=[Metric(f"best/{metric}", display_name=f"best {metric}")])
        writer._get_file_writer().add_summary(_as_torch_summary(config))
    for trial in record.trials():
        _write_trial(folder / f"trial_{trial.number:04d}", trial, metric)


def _write_trial(folder: Path, trial: FrozenTrial, metric: str) -> None:
    with SummaryWriter(str(folder)) as writer:
        values = {
            key: value if isinstance(value, (bool, float, str)) else float(value) for key, value in trial.params.items()
        }
        writer._get_file_writer().add_summary(_as_torch_summary(hparams_pb(values, trial_id=str(trial.number))))
        for epoch, value in sorted(trial.intermediate_values.items()):
            writer.add_scalar(metric, value, epoch)
        if trial.intermediate_values:
            best = max(trial.intermediate_values.values())
            writer.add_scalar(f"best/{metric}", best, len(trial.intermediate_values))


def _as_torch_summary(summary: Any) -> Any:
    """TensorBoard's own summary message; torch's writer takes it as it is."""
    return summary
