"""From a command line to frozen settings: Hydra composes, the settings' own rules decide, every problem is reported."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from src.core.errors import ConfigError, Problem
from src.core.paths import REPOSITORY

CONF = REPOSITORY / "conf"
PARAMS = "params"
RUN_DIR = "hydra.run.dir"

S = TypeVar("S")


@cache
def groups(config_name: str) -> Mapping[str, list[str]]:
    """The groups of a config in `conf/` and their options."""
    content, _ = compose_plain(config_name, [])
    return {
        folder.name: sorted(f.stem for f in folder.glob("*.yaml") if f.stem != "base")
        for folder in sorted(config_place(config_name)[0].iterdir())
        if folder.is_dir() and folder.name in content
    }


def config_place(config_name: str) -> tuple[Path, str]:
    """The folder that a config and its groups lie in, and its name there: `use/serve` knows no group of `conf/`."""
    path = CONF / config_name
    return path.parent, path.name


def compose_plain(config_name: str, overrides: Sequence[str]) -> tuple[dict[str, Any], Path]:
    """The composed config as nested plain data, and the run folder that it names."""
    GlobalHydra.instance().clear()
    place, name = config_place(config_name)
    with initialize_config_dir(str(place), version_base="1.3"):
        config = compose(name, list(overrides), return_hydra_config=True)
        folder = Path(str(config.hydra.run.dir))
        content = OmegaConf.to_container(
            cast(DictConfig, OmegaConf.masked_copy(config, _own_keys(config))), resolve=True
        )
    return cast(dict[str, Any], content), folder


def _own_keys(config: DictConfig) -> list[str]:
    return [str(key) for key in config if key != "hydra"]


def expand_params(arguments: Sequence[str]) -> list[str]:
    """Replace ``params=FILE`` by the overrides that the file holds; what else stands on the command line wins.

    Raises ``ConfigError`` when the file cannot be read, is no mapping, or holds values that no override can say.
    """
    given = [a for a in arguments if a.startswith(f"{PARAMS}=")]
    rest = [a for a in arguments if not a.startswith(f"{PARAMS}=")]
    if not given:
        return rest
    path = Path(given[-1].split("=", 1)[1])
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError.one(PARAMS, str(path), f"cannot be read ({error})", "name a best_params.yaml") from None
    if not isinstance(content, dict):
        raise ConfigError.one(PARAMS, str(path), "must be a mapping of dotted keys to values")
    rule, step = "must be a number, text, true, false, null or a list of them", "write nested keys with dots"
    problems = [Problem(f"{path.name}: {key}", v, rule, step) for key, v in content.items() if not _is_plain(v)]
    if problems:
        raise ConfigError(problems)
    taken = {a.split("=", 1)[0].lstrip("+~") for a in rest}
    return [f"{key}={format_value(value)}" for key, value in content.items() if key not in taken] + rest


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, (bool, int, float, str))


def format_value(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(format_value(part) for part in value)}]"
    if isinstance(value, str):
        # in a double-quoted string only the quote and backslashes before it are special
        escaped = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), value)
        return f'"{escaped}"'
    return json.dumps(value)


def read_settings(config_name: str, arguments: Sequence[str], schema: type[S]) -> tuple[S, Path]:
    """Settings and the wanted run folder from overrides.

    Raises ``ConfigError`` with all problems together: overrides that cannot be parsed, unknown groups, options and
    keys (with the nearest valid one), wrong types, values out of range.
    """
    problems: list[Problem] = []
    accepted = _check_overrides(config_name, expand_params(arguments), problems)
    try:
        content, folder = compose_plain(config_name, accepted)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError([*problems, Problem("overrides", " ".join(accepted), str(error).splitlines()[0])]) from None
    settings = _validate(content, schema, problems)
    if problems or settings is None:
        raise ConfigError(problems)
    return absolute(settings, Path.cwd()), folder


def _check_overrides(config_name: str, overrides: Sequence[str], problems: list[Problem]) -> list[str]:
    """The overrides that can be composed; the others become problems."""
    parsed = [(text, o) for text in overrides if (o := _parse(text, problems)) is not None]
    options = groups(config_name)
    chosen = [text for text, o in parsed if o.key_or_group in options and _option_exists(o, options, problems)]
    valid = _known_keys(config_name, tuple(chosen))
    accepted = list(chosen)
    for text, override in parsed:
        if override.key_or_group in options:
            continue
        if override.key_or_group in valid:
            accepted.append(text)
        else:
            problems.append(_unknown("key", override.key_or_group, valid))
    return accepted


@cache
def _known_keys(config_name: str, chosen: tuple[str, ...]) -> tuple[str, ...]:
    """Every key that can be changed once these group options are chosen."""
    return (*_dotted(compose_plain(config_name, chosen)[0]), RUN_DIR)


def _parse(text: str, problems: list[Problem]) -> Override | None:
    if text.startswith("-"):
        problems.append(Problem("option", text, "is unknown", "see --help"))
        return None
    try:
        override: Override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        step = "write key=value, and quotes around a value with special characters: 'key=\"~/a b\"'"
        problems.append(Problem("override", text, str(error).splitlines()[0], step))
        return None
    if override.is_sweep_override():
        problems.append(Problem("override", text, "names several values", "give one value a run, or use tune_distill"))
        return None
    if override.type != OverrideType.CHANGE or override.package is not None:
        problems.append(Problem("override", text, "keys can be changed, not added or removed", "write key=value"))
        return None
    return override


def _option_exists(override: Override, options: Mapping[str, list[str]], problems: list[Problem]) -> bool:
    option = str(override.value())
    if option in options[override.key_or_group]:
        return True
    problems.append(_unknown(override.key_or_group, option, options[override.key_or_group]))
    return False


def _unknown(what: str, value: str, valid: Iterable[str]) -> Problem:
    valid = list(valid)
    near = difflib.get_close_matches(value, valid, n=1, cutoff=0.5) or [
        key for key in valid if key.rsplit(".", 1)[-1] == value.rsplit(".", 1)[-1]
    ]
    step = f"did you mean {near[0]}?" if near else "see --help for every key"
    return Problem(what, value, "does not exist", step)


def _dotted(content: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in content.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            keys += _dotted(value, f"{prefix}{key}.")
    return keys


def _validate(content: Mapping[str, Any], schema: type[S], problems: list[Problem]) -> S | None:
    try:
        # strict JSON: "3" is no number, true is no number, 3 is a float where one is wanted
        return TypeAdapter(schema).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        valid = _dotted(content)
        for e in error.errors():
            key = ".".join(str(part) for part in e["loc"])
            if e["type"] == "unexpected_keyword_argument":
                problems.append(_unknown("key", key, [k for k in valid if k != key]))
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


def _shown(error: Mapping[str, Any]) -> Any:
    return "…" if isinstance(error["input"], Mapping) else error["input"]


def to_settings(content: Mapping[str, Any], schema: type[S], base: str) -> S:
    """Composed plain data as settings with absolute paths; raises ``ConfigError`` with every problem."""
    problems: list[Problem] = []
    settings = _validate(content, schema, problems)
    if settings is None:
        raise ConfigError(problems)
    return absolute(settings, Path(base))


def nested_plain(settings: Any) -> dict[str, Any]:
    """Settings as nested plain data, as YAML shows them (paths as text, tuples as lists)."""
    nested: dict[str, Any] = json.loads(json.dumps(asdict(settings), default=str))
    return nested


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
            changes[field.name] = (base / value.expanduser()).resolve()
        elif isinstance(value, tuple) and value and all(isinstance(part, Path) for part in value):
            changes[field.name] = tuple((base / part.expanduser()).resolve() for part in value)
        elif field.name == "llm" and (value.startswith((".", "/", "~")) or (base / value).is_dir()) and value != "tiny":
            changes[field.name] = str((base / Path(value).expanduser()).resolve())
        elif is_dataclass(value):
            changes[field.name] = absolute(value, base)
    return cast(S, replace(cast(Any, settings), **changes))
