"""What the sections show, in reading order; how it looks and how to read it say the templates."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from optuna.trial import TrialState

from src.evaluation.comparison import metric_title
from src.tuning.html_report import figures, plots, tables
from src.tuning.html_report.parts import Panel
from src.tuning.html_report.sources import Result
from src.tuning.html_report.style import STATES
from src.tuning.html_report.wording import count, duration, listing
from src.tuning.report import trial_line
from src.tuning.study import SEARCH
from src.tuning.study_view import StudyView


def sections(result: Result) -> dict[str, Any]:
    """What each section shows, by its anchor; one without anything to show is left out."""
    made = {
        "arms": _arms(result),
        "comparison": _comparison(result),
        "segments": None if result.segments is None else tables.segments(result.segments),
        "examples": result.examples,
        "curves": figures.learning_curves(result.searches),
        "search": _search(result),
        "trials": _trials(result),
        "record": _record(result),
    }
    return {anchor: shown for anchor, shown in made.items() if shown}


def _arms(result: Result) -> dict[str, Any]:
    if result.fair is None:
        return {}
    fair = result.fair
    return {
        "panels": figures.arms(fair),
        "tables": [tables.differences(fair), tables.arms(fair)],
        "missing": fair.get("missing", {}),
    }


def _comparison(result: Result) -> dict[str, Any]:
    if (frame := result.comparison) is None:
        return {}
    return {"table": tables.comparison(frame), "missing": tables.missing(frame), "openings": result.openings}


def _search(result: Result) -> dict[str, Any]:
    """Optuna's plots: the history of all studies together, the others of one study at a time."""
    searches = [view for view in result.searches if view.completed()]
    if not searches:
        return {}
    first = searches[0].trials[0]
    alone = result.manifest.get("kind") == "tune_distill" and [s.name for s in searches] == [SEARCH]
    known = alone and first.state == TrialState.COMPLETE
    history = plots.history(searches, first.values[0] if known else None)
    return {"history": history, "studies": [(view.title, _study(view)) for view in searches]}


def _study(view: StudyView) -> list[tuple[str, Sequence[Panel]]]:
    """Rows of figures, each with its heading or ""."""
    shares, order = plots.importances(view)
    slices, single = plots.slices(view), len(view.metrics) == 1
    rows = [
        ("", [] if single else plots.pareto(view)),
        ("", [panel for panel in (shares, plots.contour(view, order[:2])) if panel]),
        (f"Slices: {metric_title(view.metrics[0])} by parameter", slices),
        ("", [plots.parallel_coordinates(view)] if slices and single else []),
    ]
    return [(heading, panels) for heading, panels in rows if panels]


def _trials(result: Result) -> dict[str, Any]:
    if not result.studies:
        return {}
    trained = [trial for view in result.searches for trial in view.trials]
    lines = [trial_line(trial, view.metrics, []) for view in result.searches for trial in view.trials]
    seconds, epochs = (sum(line[key] or 0 for line in lines) for key in ("seconds", "epochs"))
    states = Counter(STATES[trial.state][0] for trial in trained)
    ended = listing([f"{amount} {name}" for name, amount in states.most_common()]) if states else ""
    told = f"{count(len(lines), 'trial')} trained {epochs:,} epochs in {duration(seconds)}: {ended}." if lines else ""
    started = any(trial.datetime_start for trial in trained)
    return {
        "told": told,
        # that of a single search is open, others are folded away
        "studies": [(s.title, tables.trials(s), [s] == result.searches) for s in result.studies],
        "timelines": [plots.timeline(view) for view in result.searches if view.trials] if started else [],
    }


def _record(result: Result) -> dict[str, Any]:
    documents = dict(result.documents)
    if result.manifest:
        documents["manifest.json"] = json.dumps(result.manifest, indent=2, ensure_ascii=False, default=str)
    return {"times": result.times, "documents": documents} if result.times or documents else {}
