"""The page's sections: what each shows, how to read it, and their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from optuna.trial import TrialState

from src.tuning.html_report import arms, coordinates, figures, spaces, tables
from src.tuning.html_report.answer import is_without_distillation
from src.tuning.html_report.blocks import Block, Figure, Note, Section
from src.tuning.html_report.costs import cost_blocks
from src.tuning.html_report.sources import Result, Searched
from src.tuning.html_report.wording import count

_NO_STUDY = Note("There is no study.journal in this folder.")
_NONE_COMPLETED = Note("No trial has completed.")


def sections(result: Result) -> list[Section]:
    """All sections in reading order; one without anything to show is left out."""
    made = [(plan, list(plan.blocks(result))) for plan in _PLANS]
    return [Section(plan.anchor, plan.heading, _reading(plan, blocks), blocks) for plan, blocks in made if blocks]


def _reading(plan: _Plan, blocks: list[Block]) -> str:
    """How to read what is shown; nothing where only a sentence is."""
    return "" if all(isinstance(block, Note) for block in blocks) else plan.reading


def _completed(result: Result) -> list[Searched]:
    return [searched for searched in result.searches if searched.completed()]


def _heading(searched: Searched, searches: list[Searched]) -> str:
    return searched.title if len(searches) > 1 else ""


def _arms(result: Result) -> Iterator[Block]:
    if result.fair:
        yield Figure(arms.arms(result.fair))
        yield tables.differences_table(result.fair)
        yield tables.arms_table(result.fair)
    else:
        yield Note("This search did not run protocol=fair: no arm was trained with several seeds.")


def _history(result: Result) -> Iterator[Block]:
    searches = _completed(result)
    if not searches:
        yield _NONE_COMPLETED
        return
    first = searches[0].trials[0]
    known = len(searches) == 1 and is_without_distillation(result, searches[0]) and first.state == TrialState.COMPLETE
    yield Figure(figures.history(searches, first.values[0] if known else None))


def _pareto(result: Result) -> Iterator[Block]:
    searches = [searched for searched in _completed(result) if len(searched.metrics) > 1]
    for searched in searches:
        for other in range(1, len(searched.metrics)):
            yield Figure(figures.pareto(searched, other), _heading(searched, searches))
        yield tables.front_table(searched)


def _importances(result: Result) -> Iterator[Block]:
    shares = [(searched, spaces.importance_shares(searched)) for searched in result.searches]
    drawn = [(searched, found) for searched, found in shares if isinstance(found, dict)]
    if drawn:
        yield Figure(spaces.importances(drawn))
    for searched, found in shares:
        if isinstance(found, str):
            yield Note(f"{searched.title}: {found}")
    if not shares:
        yield _NO_STUDY


def _coordinates(result: Result) -> Iterator[Block]:
    searches = [searched for searched in _completed(result) if searched.parameters()]
    yield Figure(coordinates.parallel_coordinates(searches), brushed=True) if searches else _NONE_COMPLETED


def _slices(result: Result) -> Iterator[Block]:
    searches = [searched for searched in _completed(result) if searched.parameters()]
    yield from (Figure(spaces.slices(searched), _heading(searched, searches)) for searched in searches)
    if not searches:
        yield _NONE_COMPLETED


def _curves(result: Result) -> Iterator[Block]:
    searches = [s for s in result.searches if any(trial.intermediate_values for trial in s.trials)]
    yield Figure(figures.learning_curves(searches)) if searches else Note("No trial has reported an epoch.")


def _trials(result: Result) -> Iterator[Block]:
    if not result.studies:
        yield _NO_STUDY
        return
    yield tables.failures(result.studies)
    for searched in result.studies:
        many = f"{searched.title}: {count(len(searched.trials), 'trial')}" if len(result.studies) > 1 else ""
        yield tables.trials_table(searched, many)


@dataclass(frozen=True)
class _Plan:
    anchor: str
    heading: str
    reading: str
    blocks: Callable[[Result], Iterable[Block]]


_PLANS = (
    _Plan(
        "comparison",
        "Comparison",
        "Every model on the same examples; trials says how many configurations were tried to find it.",
        tables.comparison_blocks,
    ),
    _Plan(
        "arms",
        "Arms",
        "Each arm's mean on the test split with its 95 % interval, its seeds as strokes below; and paired differences, "
        "which are clear of the dotted line where chance alone does not explain them (the verdict also corrects for "
        "several comparisons).",
        _arms,
    ),
    _Plan(
        "segments",
        "Segments",
        "For whom a model gains: its value in each part of the examples and, in brackets, the 95 % interval of its "
        "paired gain over the baseline. Of twenty such intervals one excludes zero by chance.",
        tables.segments_blocks,
    ),
    _Plan(
        "history",
        "Optimisation history",
        "Each dot is a completed trial, in the order they were started; the line is the best value so far. A line that "
        "has long been flat says that more trials would bring little.",
        _history,
    ),
    _Plan(
        "pareto",
        "Pareto front",
        "Each dot is a completed trial; one on the front cannot be improved in one objective without loss in another.",
        _pareto,
    ),
    _Plan(
        "importances",
        "Parameter importances",
        "How much of what sets the best tenth of the trials apart (at least five, at most half) goes with each "
        "parameter: PED-ANOVA, shares of 1. With few trials this is a hint, not a finding.",
        _importances,
    ),
    _Plan(
        "coordinates",
        "Parallel coordinates",
        "Each line is a completed trial, darker where it is better. Drag over a part of an axis to keep only the lines "
        "that pass there; double-click to see all again.",
        _coordinates,
    ),
    _Plan(
        "slices",
        "Slices",
        "Each dot is a completed trial, seen from one parameter at a time; the large one is the best trial. A number "
        "in brackets says how many trials used a conditional parameter.",
        _slices,
    ),
    _Plan(
        "curves",
        "Learning curves",
        "The validation metric after each epoch; a dot is where a trial ended or was stopped. Click a name to hide its "
        "curves.",
        _curves,
    ),
    _Plan(
        "cost",
        "Cost",
        "Trial-hours are training time as each trial measured it, or from start to end where it did not reach its end.",
        cost_blocks,
    ),
    _Plan(
        "trials",
        "Trials",
        "Every trial, numbered from 0 as in trials.csv. Click a heading to sort; point at one for the full key.",
        _trials,
    ),
    _Plan("configuration", "Configuration", "What was searched, and every key of the run.", tables.settings_blocks),
    _Plan("manifest", "Manifest", "Where, when and from which code and data this came.", tables.manifest_blocks),
)
