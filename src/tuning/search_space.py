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

import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from src.core.documents import MOST_CHARACTERS, load_yaml
from src.core.errors import ConfigError, Problem
from src.tuning.ranges import range_problem
from src.tuning.read_keys import unread

Value = bool | int | float | str
Stage = Literal["student", "teacher", "distill"]
Direction = Literal["maximize", "minimize"]
#: what may be searched in a stage: other keys would change nothing there, or would need another stage anew each trial
_SEARCHED = {"student": ("student",), "teacher": ("teacher",), "distill": ("distill", "active", "student")}
_FIXED = (
    "distill.outputs_from", "teacher.llm", "teacher.tiny", "teacher.encoder", "teacher.export",
    "teacher.validation_rows", "teacher.test_rows",
)  # fmt: skip
#: objectives besides the validation metrics: a student's or a teacher's trained parameters, milliseconds to score one
#: history against the catalogue, seconds of training
COSTS = ("parameters", "latency_ms", "seconds")
#: points of a grid at most: each of them is trained
MOST_POINTS = 10_000
_ON_GRID = 1e-8  # as Optuna judges it
_FORM = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Parameter(BaseModel):
    model_config = _FORM
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


_FORMS = (FloatParameter, IntParameter, CategoricalParameter)
_FORM_NAMES = ("float", "int", "categorical")
_SHOWN = 200  # characters of a value in an error
Parameter = Annotated[FloatParameter | IntParameter | CategoricalParameter, Field(discriminator="type")]


class _Document(BaseModel):
    model_config = _FORM
    stage: Stage
    metric: str = Field(min_length=1)
    direction: Direction = "maximize"
    also: dict[str, Direction] = Field(default_factory=dict)
    parameters: dict[str, Parameter] = Field(min_length=1)


@dataclass(frozen=True)
class SearchSpace:
    """A checked search space. Plain data, so that it can be pickled. ``objectives``: name to direction, in order."""

    stage: Stage
    objectives: Mapping[str, Direction]
    parameters: Mapping[str, FloatParameter | IntParameter | CategoricalParameter]

    @property
    def metric(self) -> str:
        """The first objective, by which trials are stopped early and a winner is named."""
        return next(iter(self.objectives))

    def only(self, keys: Iterable[str]) -> SearchSpace:
        """The part with these parameters; one whose condition is left out is left out, too."""
        kept: dict[str, FloatParameter | IntParameter | CategoricalParameter] = {}
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


def _level_count(parameter: FloatParameter | IntParameter | CategoricalParameter) -> int:
    if isinstance(parameter, CategoricalParameter):
        return len(parameter.choices)
    assert parameter.step is not None
    return round((parameter.high - parameter.low) / parameter.step) + 1


def _levels(parameter: FloatParameter | IntParameter | CategoricalParameter) -> list[Value]:
    if isinstance(parameter, CategoricalParameter):
        return list(parameter.choices)
    assert parameter.step is not None
    numbers = range(_level_count(parameter))
    if isinstance(parameter, IntParameter):
        return [parameter.low + number * parameter.step for number in numbers]
    # as decimal numbers: 0.1 + 2 * 0.1 should be 0.3
    return [round(parameter.low + number * parameter.step, 12) for number in numbers]


def _count_points(
    parameters: Mapping[str, FloatParameter | IntParameter | CategoricalParameter],
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


def _settled(
    parameters: Mapping[str, FloatParameter | IntParameter | CategoricalParameter], key: str, value: Value | None
) -> dict[str, FloatParameter | IntParameter | CategoricalParameter]:
    """The other parameters where ``key`` has a value, None for one that no condition names."""
    kept: dict[str, FloatParameter | IntParameter | CategoricalParameter] = {}
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


def _suggest(
    trial: optuna.trial.Trial, key: str, parameter: FloatParameter | IntParameter | CategoricalParameter
) -> Value:
    match parameter:
        case FloatParameter(low=low, high=high, log=log, step=step):
            return trial.suggest_float(key, low, high, log=log, step=step)
        case IntParameter(low=low, high=high, log=log, step=step):
            return trial.suggest_int(key, low, high, log=log, step=step)
        case CategoricalParameter(choices=choices):
            chosen: Value = trial.suggest_categorical(key, choices)
            return chosen


def load_search_space(path: Path, config: Mapping[str, Any], metrics: Sequence[str]) -> SearchSpace:
    """Read and check a document.

    Args:
        path: the YAML document.
        config: the configuration, nested, with every key.
        metrics: the names that training reports.

    Raises:
        ConfigError: every problem together. An unreadable file, a malformed parameter, a key that the configuration
            does not have or that no trial would read, bounds that nothing can be drawn from, a condition that cannot
            hold.
    """
    document, known = _read(path), flatten(config)
    conditions = _check_conditions(path, document.parameters)
    problems = [
        problem
        for key, parameter in document.parameters.items()
        for problem in (*_check_key(path, key, known, document.stage), *_check_range(path, key, parameter))
    ]
    problems += conditions
    problems += _check_objectives(path, document, metrics)
    if not problems:
        problems += _check_read(path, document, known)
    if problems:
        raise ConfigError(problems)
    return SearchSpace(document.stage, {document.metric: document.direction, **document.also}, document.parameters)


def _check_objectives(path: Path, document: _Document, metrics: Sequence[str]) -> list[Problem]:
    problems = []
    if document.metric not in metrics:
        problems.append(Problem(f"{path.name}: metric", document.metric, f"must be one of {', '.join(metrics)}"))
    if document.metric in metrics and document.direction == "minimize":
        problems.append(
            Problem(f"{path.name}: direction", "minimize", f"{document.metric} is better where it is higher")
        )
    known = (*metrics, *COSTS)
    if document.stage == "teacher":
        known = (*metrics, "parameters", "seconds")
    for name in document.also:
        if name not in known or name == document.metric:
            problems.append(Problem(f"{path.name}: also", name, f"must be another one of {', '.join(known)}"))
    return problems


def _read(path: Path) -> _Document:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_CHARACTERS + 1)
    except OSError as error:
        step = "name a document such as search_spaces/distill.yaml; relative paths start where the command was started"
        raise ConfigError.one("tuning.search_space", str(path), f"cannot be read ({error.strerror})", step) from None
    except UnicodeDecodeError as error:
        step = "save it as UTF-8 text"
        raise ConfigError.one("tuning.search_space", str(path), f"is not valid YAML: {error}", step) from None
    content = load_yaml(text, f"tuning.search_space {path.name}")
    if problems := _nested_parameters(path, content):
        raise ConfigError(problems)
    try:
        # JSON's strict mode accepts a whole number for a float and refuses a string for a number
        return TypeAdapter(_Document).validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        found = {problem.field: problem for problem in reversed([_malformed(path, e) for e in error.errors()])}
        raise ConfigError(list(reversed(found.values()))) from None


def _nested_parameters(path: Path, content: Any) -> list[Problem]:
    """Parameters that stand in groups, as they do in the configuration; here each has its whole key."""
    parameters = content.get("parameters") if isinstance(content, Mapping) else None
    if not isinstance(parameters, Mapping):
        return []
    groups = [key for key, value in parameters.items() if _is_group(value)]
    problems = []
    for group in groups:
        inner = next(iter(_parameters_in(parameters[group], f"{group}.")))
        step = f"write dotted keys: {inner}: {{type: ..., ...}}"
        problems.append(Problem(f"{path.name}: parameters.{group}", _shortened(parameters[group]), "is a group", step))
    return problems


def _is_group(value: Any) -> bool:
    return isinstance(value, Mapping) and "type" not in value and any(isinstance(v, Mapping) for v in value.values())


def _parameters_in(group: Mapping[str, Any], prefix: str) -> list[str]:
    keys: list[str] = []
    for key, value in group.items():
        if isinstance(value, Mapping):
            keys += _parameters_in(value, f"{prefix}{key}.") if _is_group(value) else [f"{prefix}{key}"]
    return keys


def _shortened(value: Any) -> Any:
    """A value as an error shows it: the head of what is long."""
    text = repr(value)
    return value if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _malformed(path: Path, error: Mapping[str, Any]) -> Problem:
    loc = [str(part) for part in error["loc"]]
    if "choices" in loc:  # one finding a choice, not one for each type that it could have been
        loc = loc[: loc.index("choices") + 2]
    # a parameter's form stands between its key and its field
    where = ".".join(part for part in loc if part not in _FORM_NAMES)
    shown = _shortened(error["input"])
    if error["type"] == "union_tag_not_found":
        return Problem(f"{path.name}: {where}", shown, "needs a type", "type: float, int or categorical")
    if error["type"] != "extra_forbidden":
        return Problem(f"{path.name}: {where or 'document'}", shown, error["msg"])
    known = {*_Document.model_fields, *(name for form in _FORMS for name in form.model_fields)}
    return Problem(f"{path.name}: {where}", shown, "is no key of a search space", _nearest(where, known))


def _nearest(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key.rsplit(".", 1)[-1], list(known), n=1)
    return f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(known))}"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _check_key(path: Path, key: str, known: Mapping[str, Any], stage: str) -> list[Problem]:
    where, rooms = f"{path.name}: parameter", _SEARCHED[stage]
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        step = f"did you mean {near[0]}?" if near else "see --help for every key"
        return [Problem(where, key, "is no key of the configuration", step)]
    if key.split(".", 1)[0] not in rooms or any(key == fixed or key.startswith(f"{fixed}.") for fixed in _FIXED):
        step = f"search keys of {', '.join(rooms)}; set this one for the whole search instead"
        return [Problem(where, key, f"is the same for every trial of stage {stage}", step)]
    return []


def _check_range(
    path: Path, key: str, parameter: FloatParameter | IntParameter | CategoricalParameter
) -> list[Problem]:
    where = f"{path.name}: {key}"
    if isinstance(parameter, CategoricalParameter):
        # 1, 1.0 and true are one choice to Optuna
        repeated = len(set(parameter.choices)) != len(parameter.choices)
        return [Problem(where, parameter.choices, "names a choice twice")] if repeated else []
    problems = []
    if parameter.low > parameter.high:
        problems.append(Problem(where, (parameter.low, parameter.high), "low must not exceed high"))
    if parameter.log and parameter.low <= 0:
        problems.append(Problem(where, parameter.low, "low must be above 0 on a logarithmic scale"))
    stepped = parameter.step not in ((1,) if isinstance(parameter, IntParameter) else (None,))
    if parameter.log and stepped:
        problems.append(Problem(where, parameter.step, "a step and a logarithmic scale exclude each other"))
    elif not parameter.holds(parameter.high) and not problems:
        problems.append(Problem(where, parameter.high, "high must be low plus a whole number of steps"))
    if not problems:
        whole = isinstance(parameter, IntParameter)
        found = range_problem(parameter.low, parameter.high, parameter.log, parameter.step, whole)
        problems += [Problem(where, (parameter.low, parameter.high), *found)] if found else []
    return problems


def _check_read(path: Path, document: _Document, known: Mapping[str, Any]) -> list[Problem]:
    """Every parameter must be read by some trial of the stage."""
    problems = []
    for key in document.parameters:
        needed = _needed(document.parameters, key)

        def possible(other: str, needed: Mapping[str, Value] = needed) -> list[object]:
            if other in needed:
                return [needed[other]]
            values: list[object] = [known[other]] if other in known else []
            searched = document.parameters.get(other)
            if searched is None:
                return values
            drawn = searched.choices if isinstance(searched, CategoricalParameter) else (searched.low, searched.high)
            return [*drawn, *(values if searched.when else [])]

        if found := unread(document.stage, key, possible):
            problems.append(Problem(f"{path.name}: parameter", key, *found))
    return problems


def _needed(parameters: Mapping[str, Parameter], key: str) -> dict[str, Value]:
    """All conditions under which a parameter is searched, those of its conditions too."""
    needed: dict[str, Value] = {}
    for other, value in parameters[key].when.items():
        needed |= {**_needed(parameters, other), other: value}
    return needed


def _check_conditions(path: Path, parameters: Mapping[str, Parameter]) -> list[Problem]:
    """A condition must name an earlier parameter and a value that it can take, and agree with what that one needs."""
    problems, needs = [], dict[str, dict[str, Value]]()
    for key, parameter in parameters.items():
        needs[key] = dict(parameter.when)
        for other, value in parameter.when.items():
            where = f"{path.name}: {key}.when"
            if other == key or other not in needs:
                problems.append(Problem(where, other, "must name a parameter that stands above this one"))
                continue
            if not parameters[other].holds(value):
                problems.append(Problem(where, f"{other} = {value}", "can never hold: not a value of that parameter"))
            for third, needed in needs[other].items():
                if needs[key].setdefault(third, needed) != needed:
                    rule = f"can never hold: {other} is searched only where {third} = {needed}"
                    problems.append(Problem(where, f"{third} = {needs[key][third]}", rule))
    return problems
