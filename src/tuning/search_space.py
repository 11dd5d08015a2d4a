"""A search space is a YAML document: stage, metric, direction, and each parameter's scale. Bounds are inclusive.

stage: distill
metric: ndcg_20
direction: maximize
also: {parameters: minimize}     # further objectives; without them there is one winner, with them a Pareto front
parameters:
  distill.lam: {type: float, low: 0.0, high: 2.0}
  active.policy: {type: categorical, choices: [all, kl_divergence]}
  active.kl_threshold: {type: float, low: 0.01, high: 1.0, log: true, when: {active.policy: kl_divergence}}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import optuna
from pydantic import BaseModel, ConfigDict, Field

from src.core.errors import ConfigError, Problem

Value = bool | int | float | str
Stage = Literal["student", "teacher", "distill"]
Direction = Literal["maximize", "minimize"]
#: points of a grid at most: each of them is trained
MOST_POINTS = 10_000
_ON_GRID = 1e-8  # as Optuna judges it
#: how a document and its parts are read
FORM = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Parameter(BaseModel):
    model_config = FORM
    #: other parameters' values under which this one is searched; elsewhere it keeps the config's value
    when: dict[str, Value] = Field(default_factory=dict)


class FloatParameter(_Parameter):
    """A real number in [low, high], drawn evenly, or evenly in its logarithm."""

    type: Literal["float"]
    low: float
    high: float
    log: bool = False
    step: float | None = Field(default=None, gt=0)

    @property
    def first(self) -> float:
        """A value that it can take."""
        return self.low

    def holds(self, value: object) -> bool:
        """Whether it can take this value."""
        return _in_range(self, value)


class IntParameter(_Parameter):
    """A whole number in [low, high]."""

    type: Literal["int"]
    low: int
    high: int
    log: bool = False
    step: int = Field(default=1, gt=0)

    @property
    def first(self) -> int:
        """A value that it can take."""
        return self.low

    def holds(self, value: object) -> bool:
        """Whether it can take this value."""
        return _in_range(self, value)


class CategoricalParameter(_Parameter):
    """One of some values."""

    type: Literal["categorical"]
    choices: list[Value] = Field(min_length=1)

    @property
    def first(self) -> Value:
        """A value that it can take."""
        return self.choices[0]

    def holds(self, value: object) -> bool:
        """Whether it can take this value."""
        return value in self.choices


def _in_range(parameter: FloatParameter | IntParameter, value: object) -> bool:
    """Inside the bounds, and on the grid where there is one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if not parameter.low <= value <= parameter.high:
        return False
    if parameter.step is None:
        return True
    steps = (value - parameter.low) / parameter.step
    return abs(steps - round(steps)) < _ON_GRID


AnyParameter = FloatParameter | IntParameter | CategoricalParameter
Parameter = Annotated[AnyParameter, Field(discriminator="type")]


@dataclass(frozen=True)
class SearchSpace:
    """A checked search space. Plain data, so that it can be pickled. ``objectives``: name to direction, in order."""

    stage: Stage
    objectives: Mapping[str, Direction]
    parameters: Mapping[str, AnyParameter]

    @property
    def metric(self) -> str:
        """The first objective, by which trials are stopped early and a winner is named."""
        return next(iter(self.objectives))

    def only(self, keys: Iterable[str]) -> SearchSpace:
        """The part with these parameters; one whose condition is left out is left out, too."""
        kept: dict[str, AnyParameter] = {}
        wanted = set(keys)
        for key, parameter in self.parameters.items():
            if key in wanted and all(other in kept for other in parameter.when):
                kept[key] = parameter
        return SearchSpace(self.stage, self.objectives, kept)

    def grid_size(self) -> int:
        """How many points `grid` has, counted without making them.

        Raises:
            ConfigError: a parameter has no steps, or there are more than `MOST_POINTS` points.
        """
        problems = [
            Problem(f"search space: {key}", (p.low, p.high), "has no step, so it has no grid", "add step, or choices")
            for key, p in self.parameters.items()
            if isinstance(p, FloatParameter) and p.step is None
        ]
        if problems:
            raise ConfigError(problems)
        count, whole = _count_points(self.parameters)
        if count > MOST_POINTS:
            found = f"{count:,} points" if whole else f"at least {count:,} points"
            rule = f"a grid trains every point, and may have {MOST_POINTS:,} of them"
            step = "give parameters larger steps or fewer choices, or draw from the space: tuning.sampler=tpe"
            raise ConfigError.one("search space", found, rule, step)
        return count

    def grid(self) -> list[dict[str, Value]]:
        """Every point once, the last parameter turning fastest; conditional parameters only where they are searched.

        Raises:
            ConfigError: as `grid_size`.
        """
        self.grid_size()
        points: list[dict[str, Value]] = [{}]
        for key, parameter in self.parameters.items():
            points = [
                extended
                for point in points
                for extended in (
                    [{**point, key: value} for value in _levels(parameter)]
                    if all(point.get(other) == value for other, value in parameter.when.items())
                    else [point]
                )
            ]
        return points

    def suggest(self, trial: optuna.trial.Trial) -> dict[str, Value]:
        """Draw every parameter whose condition holds, in the document's order."""
        drawn: dict[str, Value] = {}
        for key, parameter in self.parameters.items():
            if all(drawn.get(other) == value for other, value in parameter.when.items()):
                drawn[key] = _suggest(trial, key, parameter)
        return drawn


def _level_count(parameter: AnyParameter) -> int:
    if isinstance(parameter, CategoricalParameter):
        return len(parameter.choices)
    assert parameter.step is not None
    return round((parameter.high - parameter.low) / parameter.step) + 1


def _levels(parameter: AnyParameter) -> list[Value]:
    if isinstance(parameter, CategoricalParameter):
        return list(parameter.choices)
    assert parameter.step is not None
    numbers = range(_level_count(parameter))
    if isinstance(parameter, IntParameter):
        return [parameter.low + number * parameter.step for number in numbers]
    # as decimal numbers: 0.1 + 2 * 0.1 should be 0.3
    return [round(parameter.low + number * parameter.step, 12) for number in numbers]


def _count_points(
    parameters: Mapping[str, AnyParameter],
) -> tuple[int, bool]:
    """Points of a grid, and whether that is all of them: beyond `MOST_POINTS` not every condition is looked at.

    Parameters on which others depend are settled one by one: at each value that a condition names, and once at all
    their other values together. Where no condition is left, the points are a product.
    """
    always = [parameter for parameter in parameters.values() if not parameter.when]
    count = math.prod(_level_count(parameter) for parameter in always)
    if len(always) == len(parameters) or count > MOST_POINTS:
        return count, len(always) == len(parameters)
    first = next(other for p in parameters.values() for other in p.when if not parameters[other].when)
    named = {parameter.when[first] for parameter in parameters.values() if first in parameter.when}
    others = _level_count(parameters[first]) - len(named)
    total, whole = 0, True
    for value, times in [*((value, 1) for value in named), (None, others)]:
        if times and total <= MOST_POINTS:
            points, known = _count_points(_settled(parameters, first, value))
            total, whole = total + times * points, whole and known
    return total, whole and total <= MOST_POINTS


def _settled(parameters: Mapping[str, AnyParameter], key: str, value: Value | None) -> dict[str, AnyParameter]:
    """The other parameters where ``key`` has a value, None for one that no condition names."""
    kept: dict[str, AnyParameter] = {}
    for name, parameter in parameters.items():
        if name == key or (key in parameter.when and parameter.when[key] != value):
            continue
        rest = {other: needed for other, needed in parameter.when.items() if other != key}
        kept[name] = parameter.model_copy(update={"when": rest})
    dropped = {name for name in parameters if name != key and name not in kept}
    while gone := {name for name, parameter in kept.items() if dropped & parameter.when.keys()}:
        dropped |= gone
        kept = {name: parameter for name, parameter in kept.items() if name not in gone}
    return kept


def _suggest(trial: optuna.trial.Trial, key: str, parameter: AnyParameter) -> Value:
    match parameter:
        case FloatParameter(low=low, high=high, log=log, step=step):
            return trial.suggest_float(key, low, high, log=log, step=step)
        case IntParameter(low=low, high=high, log=log, step=step):
            return trial.suggest_int(key, low, high, log=log, step=step)
        case CategoricalParameter(choices=choices):
            chosen: Value = trial.suggest_categorical(key, choices)
            return chosen


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
