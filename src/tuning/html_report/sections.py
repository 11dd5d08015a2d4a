"""The page's sections: what each shows, how to read it, and their order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from optuna.trial import TrialState

from src.tuning.html_report import figures, plots, tables
from src.tuning.html_report.blocks import Block, Fold, Listing, Note, Panels, Section, Table
from src.tuning.html_report.sources import Result, Searched
from src.tuning.html_report.style import STATES
from src.tuning.html_report.wording import count, duration, listing, metric_title
from src.tuning.journal import JOURNAL
from src.tuning.report import trial_line
from src.tuning.study import SEARCH


def sections(result: Result) -> list[Section]:
    """All sections in reading order; one without anything to show is left out."""
    made = [(plan, list(plan.blocks(result))) for plan in _PLANS]
    return [Section(plan.anchor, plan.heading, plan.reading, blocks) for plan, blocks in made if blocks]


def _arms(result: Result) -> Iterator[Block]:
    if result.fair:
        yield Panels(figures.arms(result.fair))
        yield tables.differences(result.fair)
        yield tables.arms(result.fair)


def _curves(result: Result) -> Iterator[Block]:
    if panels := figures.learning_curves(result.searches):
        yield Panels(panels)


def _search(result: Result) -> Iterator[Block]:
    """Optuna's plots: the history of all studies together, the others of one study at a time."""
    searches = [searched for searched in result.searches if searched.completed()]
    if not searches:
        return
    first = searches[0].trials[0]
    alone = result.manifest.get("kind") == "tune_distill" and [s.name for s in searches] == [SEARCH]
    known = alone and first.state == TrialState.COMPLETE
    yield Panels([plots.history(searches, first.values[0] if known else None)])
    for searched in searches:
        blocks = list(_study(searched))
        yield from blocks if len(searches) == 1 else [Fold(f"{searched.title}: its parameters", blocks)]
    yield Note(f"The same plots and more, to be turned and filtered: optuna-dashboard {JOURNAL}")


def _study(searched: Searched) -> Iterator[Block]:
    if len(searched.metrics) > 1:
        yield Panels(plots.pareto(searched))
    shares, order = plots.importances(searched)
    panels = [shares, plots.contour(searched, order[:2])]
    yield Panels([panel for panel in panels if panel])
    if slices := plots.slices(searched):
        yield Panels(slices, f"Slices: {metric_title(searched.metrics[0])} by parameter")
        if len(searched.metrics) == 1:
            yield Panels([plots.parallel_coordinates(searched)])


def _trials(result: Result) -> Iterator[Block]:
    lines = [trial_line(trial, searched.metrics, []) for searched in result.searches for trial in searched.trials]
    seconds, epochs = (sum(line[key] or 0 for line in lines) for key in ("seconds", "epochs"))
    if lines:
        states = Counter(STATES[TrialState[line["state"]]][0] for line in lines)
        ended = listing([f"{amount} {name}" for name, amount in states.most_common()])
        yield Note(f"{count(len(lines), 'trial')} trained {epochs:,} epochs in {duration(seconds)}: {ended}.")
    for searched in result.studies:
        table = tables.trials(searched)
        alone = [searched] == result.searches
        yield table if alone else Fold(f"{searched.title}: {count(len(searched.trials), 'trial')}", [table])
    if any(trial.datetime_start for searched in result.searches for trial in searched.trials):
        yield Panels([plots.timeline(searched) for searched in result.searches if searched.trials])


def _record(result: Result) -> Iterator[Block]:
    if result.times:
        rows = [[name.replace("_", " "), duration(seconds)] for name, seconds in result.times.items()]
        yield Table(["this run", "time"], rows)
    yield from (Listing(name, text) for name, text in result.documents.items())
    if result.manifest:
        yield Listing("manifest.json", json.dumps(result.manifest, indent=2, ensure_ascii=False, default=str))


@dataclass(frozen=True)
class _Plan:
    anchor: str
    heading: str
    reading: str
    blocks: Callable[[Result], Iterable[Block]]


_PLANS = (
    _Plan(
        "arms",
        "Arms",
        "Each arm's mean on the test split with its 95 % interval, its seeds as strokes below; and paired differences, "
        "which are clear of the dotted line where chance alone does not explain them (the verdict also corrects for "
        "several comparisons).",
        _arms,
    ),
    _Plan(
        "comparison",
        "Comparison",
        "Every model on the same examples; trials says how many configurations were tried to find it.",
        tables.comparison,
    ),
    _Plan(
        "segments",
        "Segments",
        "For whom a model gains: its value in each part of the examples and, in brackets, the 95 % interval of its "
        "paired gain over the baseline. Of twenty such intervals one excludes zero by chance.",
        tables.segments,
    ),
    _Plan(
        "curves",
        "Learning curves",
        "The validation metric after each epoch; a dot is where a trial ended or was stopped. Click a name to hide its "
        "curves.",
        _curves,
    ),
    _Plan(
        "search",
        "The search",
        "Optuna's plots. Each dot or line is a completed trial (darker: later in slices, better among lines; large and "
        "green: the best); point at one for its parameters. Importances are PED-ANOVA's shares of what sets the best "
        "trials apart from all: with few trials a hint, not a finding.",
        _search,
    ),
    _Plan(
        "trials",
        "Trials",
        "Every trial, numbered from 0 as in trials.csv. Click a heading to sort; point at one for the full key.",
        _trials,
    ),
    _Plan("record", "Record", "Times, space, settings and manifest of this run.", _record),
)
