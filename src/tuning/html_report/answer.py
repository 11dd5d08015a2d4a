"""What came out, in plain words: the first thing on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from optuna.trial import TrialState

from src.tuning.html_report.arms import common_reference, title_of
from src.tuning.html_report.blocks import Table, Verdict
from src.tuning.html_report.sources import SEARCH, Result, Searched
from src.tuning.html_report.wording import change, count, listing, metric_title, number, short_names

_STAGES = {"tune_distill": "distillation", "tune_student": "the student", "tune_teacher": "the teacher"}
_VERDICTS = {"helped": "{} helped", "hurt": "{} hurt", "cannot be told": "for {} it cannot be told"}
_REFERENCES = ("baseline", "student")
#: what each command calls its winner in `comparison.csv`
_WINNERS = {"tune_distill": "distilled", "tune_student": "tuned", "tune_teacher": "teacher"}


@dataclass(frozen=True)
class Answer:
    """A headline, the sentences under it, judgements (fair comparisons), and the values that won."""

    headline: str
    sentences: Sequence[str]
    verdicts: Sequence[Verdict] = ()
    values: Sequence[Table] = field(default_factory=list)


def title(result: Result) -> str:
    """What was searched, on which data."""
    stage = _STAGES.get(str(result.manifest.get("kind")), str(result.manifest.get("kind", "a search")))
    dataset = (result.settings.get("dataset") or {}).get("name")
    return f"Search over {stage}" + (f", dataset {dataset}" if dataset else "")


def answer(result: Result) -> Answer:
    """The answer of a fair comparison, of one search, or of the arms that have been searched so far."""
    if result.fair:
        return _fair(result.fair)
    if len(result.searches) == 1:
        return _single(result, result.searches[0])
    if not result.searches:
        return Answer("There is no study in this folder, so there is no answer.", [])
    sentences = [f"{searched.title}: {_winner(searched)}" for searched in result.searches]
    missing = "fair.json, the comparison of the arms, is not in this folder: the search has not come to its end."
    return Answer("The arms have been searched; they have not been compared yet.", [missing, *sentences])


def is_without_distillation(result: Result, searched: Searched) -> bool:
    """Whether trial 0 of a study is the student without distillation."""
    return result.manifest.get("kind") == "tune_distill" and searched.name == SEARCH


def _fair(fair: Mapping[str, Any]) -> Answer:
    comparisons = [*fair.get("comparisons", []), *fair.get("comparisons_with_best", [])]
    verdicts = [Verdict(str(line.get("verdict", "")), str(line.get("sentence", ""))) for line in comparisons]
    metric = metric_title(fair.get("metric", "the metric"))
    method = (
        f"Each comparison is of {metric} on the test split, paired example by example; intervals are 95 % bootstrap "
        "intervals over users and seeds, and the verdicts are corrected for several comparisons."
    )
    return Answer(_verdicts_together(fair), [method], verdicts)


def _verdicts_together(fair: Mapping[str, Any]) -> str:
    """Which arms helped, which hurt, and of which it cannot be told, in one sentence."""
    reference = common_reference(fair)
    groups: dict[str, list[str]] = {verdict: [] for verdict in _VERDICTS}
    for line in fair.get("comparisons", []):
        name = title_of(fair, line["name"])
        pair = name if reference else f"{name} (against {title_of(fair, line['against'])})"
        groups.setdefault(str(line.get("verdict", "not judged")), []).append(pair)
    found = [
        _VERDICTS.get(verdict, "{}: " + verdict).format(listing(names)) for verdict, names in groups.items() if names
    ]
    if not found:
        return "No arms were compared."
    return f"Against {reference or 'each other'}: {'; '.join(found)}."


def _single(result: Result, searched: Searched) -> Answer:
    best = searched.best()
    winner = _winner(searched, _reference(result, searched, "validation"))
    told = [winner, *result.verdicts[1:]] if result.verdicts else []
    sentences = [*told, *_on_test(result, searched), *_front(searched), _counts(searched)]
    values = []
    if best is not None:
        names = short_names(best.params)
        values = [Table([names[key] for key in best.params], [list(best.params.values())], hints=_hints(names))]
    headline = result.verdicts[0][0].upper() + result.verdicts[0][1:] if result.verdicts else winner
    return Answer(headline, sentences, values=values)


def _hints(names: Mapping[str, str]) -> dict[str, str]:
    return {short: key for key, short in names.items()}


def _winner(searched: Searched, reference: tuple[str, float] | None = None) -> str:
    best = searched.best()
    if best is None:
        return "No trial has completed, so there is no winner."
    metric, value = metric_title(searched.metrics[0]), best.values[0]
    by = f" by {metric}" if len(searched.metrics) > 1 else ""
    beside = f", {change(value, reference[1])} the {reference[0]} ({number(reference[1])})" if reference else ""
    return (
        f"Trial {best.number} is the best of {count(len(searched.trials), 'trial')}{by}: "
        f"{metric} {number(value)} on validation{beside}."
    )


def _reference(result: Result, searched: Searched, split: str) -> tuple[str, float] | None:
    """The model that the winner is set against, and its value."""
    frame, metric = result.comparison, searched.metrics[0]
    if frame is None or metric not in frame:
        return None
    models = [model for model in _REFERENCES if model in set(frame["model"]) - {_winning_model(result, frame)}]
    value = _value(frame, models[0], split, metric) if models else None
    return None if value is None else (models[0], value)


def _on_test(result: Result, searched: Searched) -> list[str]:
    frame, reference = result.comparison, _reference(result, searched, "test")
    if frame is None:
        return ["comparison.csv is not in this folder: the winner has not been set beside a baseline."]
    metric = searched.metrics[0]
    value = _value(frame, _winning_model(result, frame), "test", metric) if metric in frame else None
    if value is None or reference is None:
        return []
    return [
        f"On the test split its model scores {number(value)}, {change(value, reference[1])} the {reference[0]} "
        f"({number(reference[1])}).",
        "Each is a single training, found with different numbers of trials: whether the difference is more than chance "
        "is for protocol=fair to say.",
    ]


def _winning_model(result: Result, frame: pd.DataFrame) -> str:
    """The model that the search found."""
    named = _WINNERS.get(str(result.manifest.get("kind")), "")
    if named in set(frame["model"]):
        return named
    return str(frame[frame["trials"] == frame["trials"].max()]["model"].iloc[-1])


def _value(frame: pd.DataFrame, model: str, split: str, metric: str) -> float | None:
    found = frame[(frame["model"] == model) & (frame["split"] == split)][metric]
    return None if found.empty else float(found.iloc[0])


def _front(searched: Searched) -> list[str]:
    if len(searched.metrics) == 1 or not searched.completed():
        return []
    numbers = sorted(trial.number for trial in searched.study.best_trials)
    which = f"trial{'s' if len(numbers) > 1 else ''} {listing([str(n) for n in numbers])}"
    metrics = listing([metric_title(metric) for metric in searched.metrics])
    return [f"In {metrics} together, {which} cannot be improved in one without loss in another (the Pareto front)."]


def _counts(searched: Searched) -> str:
    words = {
        TrialState.COMPLETE: "completed",
        TrialState.PRUNED: "stopped early",
        TrialState.FAIL: "failed",
        TrialState.RUNNING: "still running",
    }
    parts = [(len(searched.having(state)), word) for state, word in words.items()]
    return (
        f"Of {count(len(searched.trials), 'trial')}, {listing([f'{n} {word}' for n, word in parts if n])}."
        if (searched.trials)
        else "No trial has been started."
    )
