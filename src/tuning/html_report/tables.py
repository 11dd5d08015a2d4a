"""Tables of the page, of what the result folder's own tables hold: models, arms, segments, trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial

from src.core.timing import duration
from src.evaluation.comparison import metric_title
from src.tuning.html_report.answer import title_of
from src.tuning.html_report.parts import ReportTable
from src.tuning.html_report.style import STATES
from src.tuning.html_report.wording import count, interval, listing, named_values, short_names
from src.tuning.report import trial_line
from src.tuning.study_view import StudyView


def comparison(frame: pd.DataFrame) -> ReportTable:
    """Every model that was set beside the winner; of one that is missing its numbers are."""
    shown = [name for name in frame.columns if name != "missing" and not name.startswith("hit_ratio_")]
    known = frame.get("missing", pd.Series(index=frame.index, dtype=object)).isna()
    rows = []
    for row, numbers in zip(frame[shown].to_numpy().tolist(), known, strict=True):
        cells = [None if value != value else value for value in row]
        rows.append(cells if numbers else [*cells[:2], *[None] * (len(shown) - 2)])
    return ReportTable([metric_title(name) for name in shown], rows)


def missing(frame: pd.DataFrame) -> dict[str, str]:
    """Why models have no numbers in `comparison`, by model."""
    return frame.dropna(subset="missing").set_index("model")["missing"].to_dict() if "missing" in frame else {}


def arms(fair: Mapping[str, Any]) -> ReportTable:
    """Arms with their intervals and what won in each; of a model that is missing the name."""
    headings = ["arm", "trials", "seeds", "test", "95 % interval", "validation", "epochs", "best parameters"]
    rows = [
        [
            arm.get("title", arm["arm"]),
            arm.get("trials"),
            len(arm.get("seeds") or []) or None,
            arm.get("test"),
            interval(arm.get("low"), arm.get("high")),
            arm.get("validation"),
            arm.get("epochs"),
            ", ".join(named_values(arm.get("params") or {})) or None,
        ]
        for arm in (*fair["arms"], *({"arm": name} for name in fair.get("missing", {})))
    ]
    return ReportTable(headings, rows)


def differences(fair: Mapping[str, Any]) -> ReportTable:
    """Paired comparisons with interval, p before and after correction, and the verdict."""
    headings = ["arm", "against", "difference", "95 % interval", "relative", "p", "p corrected", "verdict"]
    rows = [
        [
            title_of(fair, line["name"]),
            title_of(fair, line["against"]),
            f"{line['difference']:+.4f}",
            interval(line.get("low"), line.get("high"), "+"),
            None if line.get("relative") is None else f"{line['relative'] * 100:+.1f} %",
            *(line.get(key) for key in ("p", "p_corrected", "verdict")),
        ]
        for line in (*fair.get("comparisons", []), *fair.get("comparisons_with_best", []))
    ]
    return ReportTable(headings, rows)


def segments(frame: pd.DataFrame) -> tuple[str, ReportTable]:
    """What is measured on which split (the test split where it was opened), and each model's gain by segment."""
    split = "test" if (frame["split"] == "test").any() else "validation"
    shown = frame[(frame["split"] == split) & (frame["examples"] > 0)]
    metric = next(column for column in shown.columns if column.startswith("ndcg_"))
    models = list(dict.fromkeys(shown["model"]))
    rows = []
    for (by, segment), part in shown.groupby(["by", "segment"], sort=False):
        values = part.set_index("model")
        cells = [_gained(values.loc[model], metric) if model in values.index else None for model in models]
        rows.append([by, segment, int(part["examples"].iloc[0]), *cells])
    headings = ["by", "segment", "examples", *models]
    return f"{metric_title(metric)}, {split} split", ReportTable(headings, rows, sortable=False)


def _gained(line: pd.Series, metric: str) -> str:
    """A model's value in a segment, and its gain with its interval where there is one."""
    value = f"{line[metric]:.4f}"
    return value if pd.isna(line["low"]) else f"{value} ({interval(line['low'], line['high'], '+')})"


def parameters(trial: FrozenTrial) -> ReportTable:
    """The parameters of one trial."""
    hints = {short: key for key, short in short_names(trial.params).items()}
    return ReportTable(list(hints), [list(trial.params.values())], sortable=False, hints=hints)


def trials(view: StudyView) -> ReportTable:
    """The lines of `trials.csv`, without columns that no trial has anything in; the best one is marked."""
    keys = list(dict.fromkeys(key for trial in view.trials for key in trial.params))
    names = short_names(keys)
    lines = [trial_line(trial, view.metrics, keys) for trial in view.trials]
    every = dict.fromkeys(key for line in lines for key in line)
    shown = [key for key in every if key in ("trial", "epochs") or any(line.get(key) for line in lines)]
    best = view.best()
    return ReportTable(
        [metric_title(names.get(key, key)) for key in shown],
        [[line.get(key) for key in shown] for line in lines],
        hints={short: key for key, short in names.items()},
        marked=[best.number] if best and view.distinct else [],
    )


def trained(searches: Sequence[StudyView]) -> str:
    """How many trials were trained how long, and how they ended."""
    lines = [trial_line(trial, view.metrics, []) for view in searches for trial in view.trials]
    seconds, epochs = (sum(line[key] or 0 for line in lines) for key in ("seconds", "epochs"))
    states = Counter(STATES[trial.state][0] for view in searches for trial in view.trials)
    ended = listing([f"{amount} {name}" for name, amount in states.most_common()])
    return f"{count(len(lines), 'trial')} trained {epochs:,} epochs in {duration(seconds)}: {ended}."
