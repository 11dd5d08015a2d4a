"""What came out, in plain words: the first thing on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from src.evaluation.comparison import metric_title
from src.tuning.html_report.parts import Table
from src.tuning.html_report.sources import Result
from src.tuning.html_report.wording import change, count, listing, number, short_names
from src.tuning.study_view import StudyView

_STAGES = {"tune_distill": "distillation", "tune_student": "the student", "tune_teacher": "the teacher"}
_VERDICTS = {"helped": "{} helped", "hurt": "{} hurt", "cannot be told": "for {} it cannot be told"}
_FAIR = (
    "{} on the test split, paired example by example; intervals are 95 % bootstrap intervals over users and seeds, and "
    "verdicts are corrected for several comparisons."
)
_UNFINISHED = "fair.json, the comparison of the arms, is not in this folder: the search has not come to its end."


@dataclass(frozen=True)
class Answer:
    """A headline, sentences below it (each with a verdict, or ""), and the parameters that won."""

    headline: str
    notes: Sequence[tuple[str, str]] = ()
    parameters: Table | None = None


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
        return _single(result.searches[0], list(result.verdicts))
    if not result.searches:
        return Answer("There is no study in this folder, so there is no answer.")
    told = [_UNFINISHED, *(f"{view.title}: {_winner(view)}" for view in result.searches)]
    return Answer("The arms have been searched; they have not been compared yet.", [(text, "") for text in told])


def title_of(fair: Mapping[str, Any], arm: str) -> str:
    """How an arm is called."""
    return next((str(line.get("title", arm)) for line in fair["arms"] if line["arm"] == arm), arm)


def reference_of(fair: Mapping[str, Any]) -> str:
    """The title of the arm that the others are compared with."""
    return title_of(fair, next(line["against"] for line in fair["comparisons"]))


def _fair(fair: Mapping[str, Any]) -> Answer:
    """Every arm's verdict in one sentence; under it the sentences, with intervals, of the arm that distils best."""
    compared = fair.get("comparisons", [])
    groups: dict[str, list[str]] = {verdict: [] for verdict in _VERDICTS}
    for line in compared:
        groups.setdefault(str(line.get("verdict", "not judged")), []).append(title_of(fair, line["name"]))
    found = [_VERDICTS.get(name, "{}: " + name).format(listing(arms)) for name, arms in groups.items() if arms]
    headline = f"Against {reference_of(fair)}: {'; '.join(found)}." if found else "No arms were compared."
    names = {line["name"] for line in compared}
    arms = [arm for arm in fair["arms"] if arm["arm"] in names and arm.get("uses_llm", True)]
    best = max(arms, key=lambda arm: arm.get("validation") or 0.0, default={"arm": None})["arm"]
    told = [
        (f"Against {title_of(fair, line['against'])}: {line['sentence']}", str(line.get("verdict", "")))
        for line in (*compared, *fair.get("comparisons_with_best", []))
        if line["name"] == best
    ]
    return Answer(headline, [*told, (_FAIR.format(metric_title(fair["metric"])), "")])


def _single(view: StudyView, verdicts: list[str]) -> Answer:
    """The verdict on the test split where there is one, else the winner; then the values that won."""
    told = [*verdicts[:1], _winner(view), *verdicts[1:]]
    parameters = None
    if (best := view.best()) is not None:
        names = short_names(best.params)
        hints = {short: key for key, short in names.items()}
        parameters = Table(list(names.values()), [list(best.params.values())], sortable=False, hints=hints)
    return Answer(told[0][0].upper() + told[0][1:], [(sentence, "") for sentence in told[1:]], parameters)


def _winner(view: StudyView) -> str:
    best = view.best()
    if best is None:
        return "No trial has completed, so there is no winner."
    metric = metric_title(view.metrics[0])
    by = f" by {metric}" if len(view.metrics) > 1 else ""
    value = f"{metric} {number(best.values[0])} on validation"
    first = next((trial for trial in view.completed() if trial.number == 0), None)
    if first is not None and best.number:
        value += f", {change(best.values[0], first.values[0])} trial 0"
    return f"Trial {best.number} is the best of {count(len(view.trials), 'trial')}{by}: {value}."
