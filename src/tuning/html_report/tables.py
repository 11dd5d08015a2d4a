"""Tables of the page: the comparison, the arms, trials and failures, the space, the facts of the manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import TrialState

from src.tuning.html_report.arms import title_of
from src.tuning.html_report.blocks import Block, Listing, Note, Table
from src.tuning.html_report.costs import epochs_of, seconds_of
from src.tuning.html_report.sources import Result, Searched
from src.tuning.html_report.wording import (
    Difference,
    Seconds,
    count,
    interval,
    listing,
    metric_title,
    moment,
    number,
    short_names,
)

_FACTS = ("kind", "started", "finished", "seed", "command")


def comparison_blocks(result: Result) -> Iterator[Block]:
    """The comparison of models, and who opened the test split when."""
    if result.comparison is None:
        yield Note("comparison.csv is not in this folder: no models have been compared.")
    else:
        frame = result.comparison
        shown = [name for name in frame.columns if not name.startswith("hit_ratio_")]
        rows = [[None if value != value else value for value in row] for row in frame[shown].to_numpy().tolist()]
        yield Table([metric_title(name) for name in shown], rows, sortable=True)
    if result.openings:
        times = [f"{moment(opening.get('time', '?'))} for {opening.get('reason', '?')}" for opening in result.openings]
        yield Note(f"The test split was opened {count(len(times), 'time')}: {listing(times)}.")
    else:
        yield Note("The test split has not been opened (no test_openings.jsonl).")


def arms_table(fair: Mapping[str, Any]) -> Table:
    """Arms with their intervals and what won in each."""
    headings = ["arm", "trials", "seeds", "test", "95 % interval", "validation", "epochs", "best parameters"]
    rows = []
    for arm in fair["arms"]:
        names = short_names(arm.get("params") or {})
        params = ", ".join(f"{names[key]} {number(value)}" for key, value in (arm.get("params") or {}).items())
        seeds = len(arm["seeds"]) if arm.get("seeds") else None
        middle = [arm.get("test"), interval(arm.get("low"), arm.get("high")), arm.get("validation"), arm.get("epochs")]
        rows.append([arm.get("title", arm["arm"]), arm.get("trials"), seeds, *middle, params or None])
    return Table(headings, rows)


def differences_table(fair: Mapping[str, Any]) -> Table:
    """Paired comparisons with interval, p before and after correction, and the verdict."""
    headings = ["arm", "against", "difference", "95 % interval", "relative", "p", "p corrected", "verdict"]
    rows = []
    for line in fair.get("comparisons", []):
        relative = None if line.get("relative") is None else f"{line['relative'] * 100:+.1f} %"
        ends = interval(line.get("low"), line.get("high"), Difference)
        chances = [line.get("p"), line.get("p_corrected"), line.get("verdict")]
        pair = [title_of(fair, line["name"]), title_of(fair, line["against"])]
        rows.append([*pair, Difference(line["difference"]), ends, relative, *chances])
    return Table(headings, rows)


def front_table(searched: Searched) -> Table:
    """Trials of the Pareto front, best by the first objective first."""
    sign = -1 if searched.maximised else 1
    front = sorted(searched.study.best_trials, key=lambda trial: sign * trial.values[0])
    names = short_names(searched.parameters())
    headings = ["trial", *(metric_title(metric) for metric in searched.metrics), *names.values()]
    rows = [[trial.number, *trial.values, *(trial.params.get(key) for key in names)] for trial in front]
    return Table(headings, rows, sortable=True, hints={short: key for key, short in names.items()})


def trials_table(searched: Searched, heading: str = "") -> Table:
    """Every trial, the best one marked."""
    names = short_names(dict.fromkeys(key for trial in searched.trials for key in trial.params))
    metrics = [metric_title(metric) for metric in searched.metrics]
    headings = ["trial", "state", *metrics, "epochs", "best epoch", "seconds", *names.values()]
    rows = []
    for trial in searched.trials:
        values = trial.values if trial.state == TrialState.COMPLETE else [None] * len(metrics)
        seconds = None if trial.state == TrialState.RUNNING else Seconds(seconds_of(trial))
        facts = [epochs_of(trial), trial.user_attrs.get("best_epoch"), seconds]
        params = [trial.params.get(key) for key in names]
        rows.append([trial.number, trial.state.name, *values, *facts, *params])
    best = searched.best()
    marked = [best.number] if best and searched.distinct else []
    hints = {short: key for key, short in names.items()}
    return Table(headings, rows, sortable=True, hints=hints, marked=marked, heading=heading)


def failures(studies: Sequence[Searched]) -> Block:
    """Failed trials with their reasons."""
    rows = [
        [searched.title, trial.number, epochs_of(trial), trial.user_attrs.get("failure", "no reason was recorded")]
        for searched in studies
        for trial in searched.having(TrialState.FAIL)
    ]
    return Table(["study", "failed trial", "epochs", "reason"], rows) if rows else Note("No trial failed.")


def space_table(searches: Sequence[Searched]) -> Block:
    """What was searched, with scale and range."""
    parameters: dict[str, BaseDistribution] = {}
    studies: dict[str, list[str]] = {}
    for searched in searches:
        for key, kind in searched.parameters().items():
            parameters.setdefault(key, kind)
            studies.setdefault(key, []).append(searched.title)
    if not parameters:
        return Note("No parameter was searched.")
    rows = [[key, *_range(kind), listing(studies[key])] for key, kind in parameters.items()]
    return Table(["searched parameter", "scale", "range or choices", "study"], rows)


def _range(kind: BaseDistribution) -> tuple[str, str]:
    if isinstance(kind, CategoricalDistribution):
        return "choices", ", ".join(str(choice) for choice in kind.choices)
    scale = "logarithmic" if getattr(kind, "log", False) else "linear"
    whole = "whole numbers, " if type(kind).__name__.startswith("Int") else ""
    return f"{whole}{scale}", f"{getattr(kind, 'low', 0):g} to {getattr(kind, 'high', 0):g}"


def settings_blocks(result: Result) -> Iterator[Block]:
    """How the search was run, and the whole configuration."""
    yield space_table(result.searches)
    if result.settings_text is None:
        yield Note("settings.yaml is not in this folder: the configuration is not known.")
        return
    tuning = result.settings.get("tuning")
    if isinstance(tuning, Mapping):
        yield Table(["setting of the search", "value"], [[key, _text(value)] for key, value in tuning.items()])
    yield Listing("settings.yaml: every key of the run", result.settings_text)


def manifest_blocks(result: Result) -> Iterator[Block]:
    """The main facts of the manifest, then all of it."""
    manifest = result.manifest
    rows = [[key, _text(manifest[key])] for key in _FACTS if key in manifest]
    for key in ("git", "hardware", "versions", "fingerprints"):
        if manifest.get(key):
            rows.append([key, _text(manifest[key])])
    if rows:
        yield Table(["fact", "value"], rows)
    yield Listing("the whole manifest", json.dumps(manifest, indent=2, ensure_ascii=False, default=str), folded=True)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(_text(inner) for inner in value) or "none"
    if value is None or value == "":
        return "–"
    return "yes" if value is True else "no" if value is False else str(value)


def segments_blocks(result: Result) -> Iterator[Block]:
    """Gains over the baseline by segment, on the test split where it was opened."""
    frame = result.segments
    if frame is None:
        return
    split = "test" if (frame["split"] == "test").any() else "validation"
    shown = frame[(frame["split"] == split) & (frame["examples"] > 0)]
    metric = next(column for column in shown.columns if column.startswith("ndcg_"))
    models = list(dict.fromkeys(shown["model"]))
    rows = []
    for (by, segment), part in shown.groupby(["by", "segment"], sort=False):
        values = part.set_index("model")
        cells = [_gained(values.loc[model], metric) if model in values.index else None for model in models]
        rows.append([by, segment, int(part["examples"].iloc[0]), *cells])
    yield Table(["by", "segment", "examples", *models], rows, heading=f"{metric_title(metric)}, {split} split")


def _gained(line: pd.Series, metric: str) -> str:
    """A model's value in a segment, and its gain with its interval where there is one."""
    value = f"{line[metric]:.4f}"
    return value if pd.isna(line["low"]) else f"{value} ({line['low']:+.4f} to {line['high']:+.4f})"
