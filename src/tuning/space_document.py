"""A search-space document, read and checked before anything is trained: every problem is told together."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from src.core.code_places import require_no_code_beside
from src.core.documents import MOST_CHARACTERS, load_yaml
from src.core.errors import ConfigError, Problem
from src.tuning.ranges import range_problem
from src.tuning.read_keys import unread
from src.tuning.search_space import (
    FORM,
    AnyParameter,
    CategoricalParameter,
    Direction,
    FloatParameter,
    IntParameter,
    Parameter,
    SearchSpace,
    Stage,
    Value,
    flatten,
)

#: what may be searched in a stage: other keys would change nothing there, or would need another stage anew each trial
_SEARCHED = {"student": ("student",), "teacher": ("teacher",), "distill": ("distill", "active", "student")}
_FIXED = (
    "distill.outputs_from", "student.prior", "student.prior_folds", "student.prior_minutes", "student.prior_gb",
    "teacher.llm", "teacher.tiny", "teacher.encoder", "teacher.export",
    "teacher.validation_rows", "teacher.test_rows", "teacher.memory_probe",
)  # fmt: skip
#: objectives besides the validation metrics: a student's or a teacher's trained parameters, milliseconds to score one
#: history against the catalogue, seconds of training
COSTS = ("parameters", "latency_ms", "seconds")
_FORMS = (FloatParameter, IntParameter, CategoricalParameter)
_FORM_NAMES = ("float", "int", "categorical")
_EXAMPLE = "see search_spaces/student.yaml for a whole document"
_SHOWN = 200  # characters of a value in an error


class _Document(BaseModel):
    model_config = FORM
    stage: Stage
    metric: str = Field(min_length=1)
    direction: Direction = "maximize"
    also: dict[str, Direction] = Field(default_factory=dict)
    parameters: dict[str, Parameter] = Field(min_length=1)


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
    require_no_code_beside(path, content)
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
    loc, kind = [str(part) for part in error["loc"]], error["type"]
    for union, depth in (("choices", 2), ("when", 2)):  # one finding a value, not one for each type it could have been
        if union in loc[2:] and len(loc) > (end := loc.index(union, 2) + depth):
            loc, kind = loc[:end], "value"
    # a parameter's form stands between its key and its field
    place = [part for number, part in enumerate(loc) if not (number == 2 and part in _FORM_NAMES)]
    where, shown = f"{path.name}: {'.'.join(place) or 'document'}", _shortened(error["input"])
    if kind == "extra_forbidden":
        inside = {name for form in _FORMS for name in form.model_fields}
        known = inside if len(place) > 2 else set(_Document.model_fields)
        return Problem(where, shown, "is no key of a search space", _nearest(place[-1], known))
    if kind == "missing":
        return Problem(where, None, "is missing", _EXAMPLE if len(place) < 2 else "")
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return Problem(where, shown, "needs a type", f"type: {', '.join(_FORM_NAMES[:-1])} or {_FORM_NAMES[-1]}")
    if kind == "value":
        return Problem(where, shown, "must be text, a finite number, true or false")
    if len(place) == 2 and place[0] == "parameters":
        return Problem(where, shown, "must be a mapping", f"{place[1]}: {{type: float, low: ..., high: ...}}")
    return Problem(where, shown, error["msg"], _EXAMPLE if len(place) < 2 else "")


def _nearest(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key.rsplit(".", 1)[-1], list(known), n=1)
    return f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(known))}"


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


def _check_range(path: Path, key: str, parameter: AnyParameter) -> list[Problem]:
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

        if found := unread(document.stage, key, possible, "seconds" in document.also):
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
