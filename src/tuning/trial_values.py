"""Searched values put into an experiment's settings, under the settings' own rules."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from src.core.errors import ConfigError, Problem
from src.core.settings import nested_plain, set_dotted
from src.distill.settings import terms
from src.pipeline.settings import ExperimentSettings
from src.student.models import require_network
from src.tuning.search_space import CategoricalParameter, SearchSpace, Stage, Value, flatten


def apply_values(settings: ExperimentSettings, values: Mapping[str, Value]) -> ExperimentSettings:
    """The settings with dotted keys replaced; raises ``pydantic.ValidationError`` when a value breaks a rule."""
    nested = nested_plain(settings)
    for key, value in values.items():
        set_dotted(nested, key, value)
    return TypeAdapter(ExperimentSettings).validate_json(json.dumps(nested), strict=True)


def no_distillation(settings: ExperimentSettings) -> dict[str, float]:
    """The dotted keys and values that switch every distillation term off; DRO stays as the baseline has it."""
    student = require_network(settings.student)
    off = {f"distill.{key}": value for term in terms() for key, value in term.off(student).items()}
    return {**off, "distill.ce_loss_weight": 1.0}


def is_distilled(found: ExperimentSettings, base: ExperimentSettings) -> bool:
    """Whether some settings have any of the distillation, beside the student alone of the base settings."""
    off, own = no_distillation(base), flatten(nested_plain(found))
    return any(own[key] != value for key, value in off.items() if key != "distill.beta")


def check_values(space: SearchSpace, settings: ExperimentSettings) -> None:
    """Every bound and choice must be a value that its field accepts; raises ``ConfigError`` with all that are not."""
    problems = []
    for key, parameter in space.parameters.items():
        ends = parameter.choices if isinstance(parameter, CategoricalParameter) else [parameter.low, parameter.high]
        for value in ends:
            try:
                apply_values(settings, {key: value})
            except ValidationError as error:
                problems += [Problem(f"search space: {key}", value, e["msg"]) for e in error.errors()[:1]]
    if problems:
        raise ConfigError(problems)


def neutral_trial(space: SearchSpace, settings: ExperimentSettings) -> dict[str, Value]:
    """The searched parameters at the no-distillation point; what is not about distillation keeps the config's value.

    Raises ``ConfigError`` when the space does not hold that point, or not the student that the baseline is: the
    baseline must be a trial like any other.
    """
    neutral = no_distillation(settings)
    chosen, outside = _point(space, {**flatten(nested_plain(settings)), **neutral})
    rule = "the no-distillation point, which is the first trial and repeats the baseline, lies outside"
    problems = [
        Problem(f"search space: {key}", value, rule, "let the bounds or choices include it")
        for key, value in outside.items()
        if key in neutral or key.startswith("student.")
    ]
    if problems:
        raise ConfigError(problems)
    return chosen


def configured_trial(space: SearchSpace, settings: ExperimentSettings) -> dict[str, Value]:
    """The searched parameters as the config has them; one that lies outside the space takes its first value."""
    return _point(space, flatten(nested_plain(settings)))[0]


def _point(space: SearchSpace, wanted: Mapping[str, Value]) -> tuple[dict[str, Value], dict[str, Value]]:
    """The point of the space that is nearest to the wanted values, and the wanted values that it cannot take."""
    chosen: dict[str, Value] = {}
    outside: dict[str, Value] = {}
    for key, parameter in space.parameters.items():
        if any(chosen.get(other) != value for other, value in parameter.when.items()):
            continue
        held = parameter.holds(wanted[key])
        chosen[key] = wanted[key] if held else parameter.first
        if not held:
            outside[key] = wanted[key]
    return chosen, outside


def fitting(space: SearchSpace, values: Mapping[str, Value]) -> dict[str, Value] | None:
    """An earlier search's values as a point of this space, None where it shares no parameter with them.

    What the earlier search did not have, or had outside these bounds, is left to the sampler.
    """
    kept: dict[str, Value] = {}
    for key, parameter in space.parameters.items():
        if all(kept.get(other) == value for other, value in parameter.when.items()):
            value = values.get(key)
            if value is not None and parameter.holds(value):
                kept[key] = value
    return kept or None


def trial_values(
    stage: Stage, settings: ExperimentSettings, number: int, values: Mapping[str, Value]
) -> dict[str, Value]:
    """The configuration keys of a trial; in a distillation number 0 has every term switched off, searched or not.

    Args:
        stage: what is searched.
        settings: of the experiment, which know the terms.
        number: of the trial.
        values: the searched keys with the trial's values.
    """
    extra = no_distillation(settings) if stage == "distill" and number == 0 else {}
    return {**values, **extra}
