"""From a command line to frozen settings: the settings' own rules decide, and every problem is reported."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from src.config.base_configs import LazyClass, loaded
from src.config.composition import compose_plain, dotted_keys
from src.config.overrides import check_overrides, expand_params, format_value, gives_values, unknown
from src.core.errors import ConfigError, Problem, first_line

S = TypeVar("S")


def read_settings(config_name: str, arguments: Sequence[str], schema: type[S] | LazyClass[S]) -> tuple[S, Path]:
    """Settings and the wanted run folder from overrides.

    Args:
        config_name: a config in `conf/`.
        arguments: the overrides.
        schema: the class of the settings, or its name.

    Raises:
        ConfigError: with all problems together: overrides that cannot be parsed, unknown groups, options and keys (with
            the nearest valid one), wrong types, values out of range.
    """
    problems: list[Problem] = []
    accepted = check_overrides(config_name, expand_params(arguments), problems)
    content, folder = _compose_sound(config_name, accepted, problems)
    if problems and not gives_values(config_name, accepted):
        # a typo and nothing else: the settings, which import torch, would find nothing wrong with their own defaults
        raise ConfigError(problems)
    settings = _validate(content, loaded(schema), problems)
    if problems or settings is None:
        raise ConfigError(problems)
    return absolute(settings, Path.cwd()), folder


def read_config(config_name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The config that the arguments compose, as nested plain data, before types and ranges are looked at.

    Raises ``ConfigError`` with all problems together, as `read_settings` does.
    """
    problems: list[Problem] = []
    accepted = check_overrides(config_name, expand_params(arguments), problems)
    content, _ = _compose_sound(config_name, accepted, problems)
    if problems:
        raise ConfigError(problems)
    return content


def _compose_sound(config_name: str, accepted: Sequence[str], problems: list[Problem]) -> tuple[dict[str, Any], Path]:
    try:
        return compose_plain(config_name, accepted)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError([*problems, Problem("overrides", " ".join(accepted), first_line(error))]) from None


def _validate(content: Mapping[str, Any], schema: type[S], problems: list[Problem]) -> S | None:
    from pydantic import TypeAdapter, ValidationError

    try:
        # strict JSON: "3" is no number, true is no number, 3 is a float where one is wanted
        return TypeAdapter(schema).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        valid = dotted_keys(content)
        for e in error.errors():
            # a key that is missing stands in the location only
            key = ".".join(map(str, e["loc"])) if e["type"] == "missing" else _key(e["loc"], content)
            if e["type"] == "unexpected_keyword_argument":
                problems.append(unknown("key", key, [k for k in valid if k != key]))
            else:
                rule = e["msg"].removeprefix("Value error, ")
                problems.append(Problem(key or "config", _shown(e), rule, _as_meant(key, e)))
        return None


def _as_meant(key: str, error: Mapping[str, Any]) -> str:
    """How to write a value that the command line reads as another type than was meant."""
    value = error["input"]
    if error["type"] == "string_type" and isinstance(value, (bool, int, float)):
        return f"write it as text: {key}='{format_value(json.dumps(value))}'"
    return f"write {key}=null for nothing" if value in ("None", "none") else ""


def _key(location: Sequence[str | int], content: Any) -> str:
    """The dotted key of a finding, without what pydantic adds for each kind of value that a field can hold."""
    parts: list[str] = []
    for part in location:
        known = part in content if isinstance(content, Mapping) else isinstance(content, list) and isinstance(part, int)
        if known:
            content = content[part]
            parts.append(str(part))
    return ".".join(parts)


def _shown(error: Mapping[str, Any]) -> Any:
    return "…" if isinstance(error["input"], Mapping) else error["input"]


def to_settings(content: Mapping[str, Any], schema: type[S], base: str) -> S:
    """Composed plain data as settings with absolute paths; raises ``ConfigError`` with every problem.

    Args:
        content: nested plain data, as it was composed.
        schema: a settings dataclass.
        base: the folder at which relative paths start.
    """
    problems: list[Problem] = []
    settings = _validate(content, schema, problems)
    if settings is None:
        raise ConfigError(problems)
    return absolute(settings, Path(base))


def absolute(settings: S, base: Path) -> S:
    """Settings whose paths do not depend on the working directory (Hydra changes it).

    ``llm`` is a path where such a folder exists and a hub id otherwise.
    """
    if not is_dataclass(settings) or isinstance(settings, type):
        return settings
    changes: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, Path):
            changes[field.name] = _resolved(field.name, value, base)
        elif isinstance(value, tuple) and value and all(isinstance(part, Path) for part in value):
            changes[field.name] = tuple(_resolved(field.name, part, base) for part in value)
        elif field.name == "llm" and _is_folder(value, base):
            changes[field.name] = str(_resolved(field.name, Path(value), base))
        elif is_dataclass(value):
            changes[field.name] = absolute(value, base)
    return cast(S, replace(cast(Any, settings), **changes))


def _is_folder(llm: str, base: Path) -> bool:
    """Whether a language model is named by its folder, and not by a hub id."""
    if llm == "tiny":
        return False
    return llm.startswith((".", "/", "~")) or _resolved("llm", Path(llm), base).is_dir()


def _resolved(field: str, path: Path, base: Path) -> Path:
    """A path that does not depend on the working directory; raises ``ConfigError`` for what no path can be."""
    try:
        return (base / path.expanduser()).resolve()
    except (ValueError, OSError, RuntimeError) as error:  # a null character, a loop of links, an unknown ~user
        raise ConfigError.one(field, str(path), f"is no path ({error})", "name a file or folder") from None
