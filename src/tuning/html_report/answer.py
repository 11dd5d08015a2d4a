"""What came out, in plain words: the first thing on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from src.tuning.html_report.blocks import Block, Note, Table
from src.tuning.html_report.sources import Result, Searched
from src.tuning.html_report.wording import change, count, listing, metric_title, number, short_names

_STAGES = {"tune_distill": "distillation", "tune_student": "the student", "tune_teacher": "the teacher"}
_VERDICTS = {"helped": "{} helped", "hurt": "{} hurt", "cannot be told": "for {} it cannot be told"}


@dataclass(frozen=True)
class Answer:
    """A headline, and what stands under it."""

    headline: str
    blocks: Sequence[Block]


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
    missing = "fair.json, the comparison of the arms, is not in this folder: the search has not come to its end."
    told = [Note(f"{searched.title}: {_winner(searched)}") for searched in result.searches]
    return Answer("The arms have been searched; they have not been compared yet.", [Note(missing), *told])


# ------------------------------------------------------------------------------------------------ a fair comparison


def common_reference(fair: Mapping[str, Any]) -> str | None:
    """The title of the one arm that all comparisons are against; ``None`` where they differ."""
    against = {line["against"] for line in fair.get("comparisons", [])}
    return title_of(fair, against.pop()) if len(against) == 1 else None


def title_of(fair: Mapping[str, Any], arm: str) -> str:
    """How an arm is called."""
    return next((str(line.get("title", arm)) for line in fair["arms"] if line["arm"] == arm), arm)


def pair_of(fair: Mapping[str, Any], line: Mapping[str, Any]) -> str:
    """What a comparison is of: the arm, and the other one where it is not the same for all."""
    name = title_of(fair, line["name"])
    return name if common_reference(fair) else f"{name} (against {title_of(fair, line['against'])})"


def _fair(fair: Mapping[str, Any]) -> Answer:
    """Every arm's verdict in one sentence; under it the sentences, with intervals, of the arm that distils best."""
    groups: dict[str, list[str]] = {verdict: [] for verdict in _VERDICTS}
    for line in fair.get("comparisons", []):
        groups.setdefault(str(line.get("verdict", "not judged")), []).append(pair_of(fair, line))
    found = [
        _VERDICTS.get(verdict, "{}: " + verdict).format(listing(names)) for verdict, names in groups.items() if names
    ]
    against = common_reference(fair) or "each other"
    headline = f"Against {against}: {'; '.join(found)}." if found else "No arms were compared."
    lines = [*fair.get("comparisons", []), *fair.get("comparisons_with_best", [])]
    judged = {line["name"] for line in fair.get("comparisons", [])}
    arms = [arm for arm in fair["arms"] if arm["arm"] in judged and arm.get("uses_llm", True)]
    best = max(arms, key=lambda arm: arm.get("validation") or 0.0, default={"arm": None})["arm"]
    told = [
        Note(f"Against {title_of(fair, line['against'])}: {line['sentence']}", str(line.get("verdict", "")))
        for line in lines
        if line["name"] == best
    ]
    method = (
        f"{metric_title(fair['metric'])} on the test split, paired example by example; intervals are 95 % bootstrap "
        "intervals over users and seeds, and verdicts are corrected for several comparisons."
    )
    return Answer(headline, [*told, Note(method)])


# ---------------------------------------------------------------------------------------------------- a single search


def _single(result: Result, searched: Searched) -> Answer:
    """The verdict on the test split where there is one, else the winner; then the values that won."""
    winner, verdicts = _winner(searched), list(result.verdicts)
    headline = verdicts[0][0].upper() + verdicts[0][1:] if verdicts else winner
    blocks: list[Block] = [Note(sentence) for sentence in ([winner, *verdicts[1:]] if verdicts else [])]
    if (best := searched.best()) is not None:
        names = short_names(best.params)
        hints = {short: key for key, short in names.items()}
        blocks.append(Table(list(names.values()), [list(best.params.values())], hints=hints))
    return Answer(headline, blocks)


def _winner(searched: Searched) -> str:
    best = searched.best()
    if best is None:
        return "No trial has completed, so there is no winner."
    by = f" by {metric_title(searched.metrics[0])}" if len(searched.metrics) > 1 else ""
    value = f"{metric_title(searched.metrics[0])} {number(best.values[0])} on validation"
    first = next((trial for trial in searched.completed() if trial.number == 0), None)
    if first is not None and best.number:
        value += f", {change(best.values[0], first.values[0])} trial 0"
    return f"Trial {best.number} is the best of {count(len(searched.trials), 'trial')}{by}: {value}."
