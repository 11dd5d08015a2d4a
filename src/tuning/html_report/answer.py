"""What a fair comparison came to: who is called what, and which of its sentences are told first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from src.tuning.html_report.wording import listing

_VERDICTS = {"helped": "{} helped", "hurt": "{} hurt", "cannot be told": "for {} it cannot be told"}


def title_of(fair: Mapping[str, Any], arm: str) -> str:
    """How an arm is called."""
    return next((str(line.get("title", arm)) for line in fair["arms"] if line["arm"] == arm), arm)


def reference_of(fair: Mapping[str, Any]) -> str:
    """The title of the arm that the others are compared with."""
    return title_of(fair, next(line["against"] for line in fair["comparisons"]))


def headline(fair: Mapping[str, Any]) -> str:
    """Every arm's verdict in one sentence."""
    groups: dict[str, list[str]] = {verdict: [] for verdict in _VERDICTS}
    for line in fair.get("comparisons", []):
        groups.setdefault(str(line.get("verdict", "not judged")), []).append(title_of(fair, line["name"]))
    found = [_VERDICTS.get(name, "{}: " + name).format(listing(arms)) for name, arms in groups.items() if arms]
    return f"Against {reference_of(fair)}: {'; '.join(found)}." if found else "No arms were compared."


def foremost(fair: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The comparisons of the arm that distils best, as validation says."""
    compared = fair.get("comparisons", [])
    names = {line["name"] for line in compared}
    arms = [arm for arm in fair["arms"] if arm["arm"] in names and arm.get("uses_llm", True)]
    best = max(arms, key=lambda arm: arm.get("validation") or 0.0, default={"arm": None})["arm"]
    return [line for line in (*compared, *fair.get("comparisons_with_best", [])) if line["name"] == best]
