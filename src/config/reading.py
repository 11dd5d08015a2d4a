"""From a command line to frozen settings: Hydra composes, the settings' own rules decide, every problem is reported."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
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

from src.config.base_configs import Named, loaded, prepare
from src.core.documents import parse_yaml, read_document
from src.core.errors import ArtefactError, ConfigError, Problem
from src.core.paths import REPOSITORY

CONF = REPOSITORY / "conf"
PARAMS = "params"
RUN_DIR = "hydra.run.dir"

#: the one mapping whose keys are the user's own
OPEN = "student.options"

S = TypeVar("S")


@cache
def groups(config_name: str) -> Mapping[str, list[str]]:
    """The groups of a config in `conf/` and their options."""
    content = _content(config_name, ())
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(config_place(config_name)[0].iterdir())
        if folder.is_dir() and folder.name in content
    }


def config_place(config_name: str) -> tuple[Path, str]:
    """The folder that a config and its groups lie in, and its name there: `use/serve` knows no group of `conf/`."""
    path = CONF / config_name
    return path.parent, path.name


def compose_plain(config_name: str, overrides: Sequence[str]) -> tuple[dict[str, Any], Path]:
    """The composed config as nested plain data, and the run folder that it names."""
    prepare(config_name)
    GlobalHydra.instance().clear()
    place, name = config_place(config_name)
    with initialize_config_dir(str(place), version_base="1.3"):
        config = compose(name, [opened(text) for text in overrides], return_hydra_config=True)
        folder = Path(str(config.hydra.run.dir))
        content = OmegaConf.to_container(
            cast(DictConfig, OmegaConf.masked_copy(config, _own_keys(config))), resolve=True
        )
    return cast(dict[str, Any], content), folder


def _is_open(key: str) -> bool:
    return key == OPEN or key.startswith(f"{OPEN}.")


def opened(override: str) -> str:
    """An override as Hydra takes it: keys can be changed only, but for those of `OPEN`, which are added."""
    return f"++{override}" if _is_open(override.split("=", 1)[0]) else override


def _own_keys(config: DictConfig) -> list[str]:
    return [str(key) for key in config if key != "hydra"]


def expand_params(arguments: Sequence[str]) -> list[str]:
    """Replace ``params=FILE`` by the overrides that the file holds; what else stands on the command line wins.

    Raises ``ConfigError`` when the file cannot be read, is no mapping, uses a key twice, holds values that no override
    can say, or says anything to Hydra itself.
    """
    given = [a for a in arguments if a.startswith(f"{PARAMS}=")]
    rest = [a for a in arguments if not a.startswith(f"{PARAMS}=")]
    if not given:
        return rest
    path = Path(given[-1].split("=", 1)[1])
    try:
        content = parse_yaml(read_document(path))
    except (ArtefactError, yaml.YAMLError) as error:
        raise ConfigError.one(PARAMS, str(path), f"cannot be read ({error})", "name a best_params.yaml") from None
    if not isinstance(content, dict):
        raise ConfigError.one(PARAMS, str(path), "must be a mapping of dotted keys to values")
    rule, step = "must be a number, text, true, false, null or a list of them", "write nested keys with dots"
    problems = [Problem(f"{path.name}: {key}", v, rule, step) for key, v in content.items() if not _is_plain(v)]
    rule = "is no key of the configuration: a name, with dots and without signs, that is not Hydra's own"
    problems += [Problem(path.name, key, rule, "remove it") for key in content if not _is_own_key(key)]
    if problems:
        raise ConfigError(problems)
    taken = {a.split("=", 1)[0].lstrip("+~") for a in rest}
    return [f"{key}={format_value(value)}" for key, value in content.items() if key not in taken] + rest


def _is_own_key(key: Any) -> bool:
    return isinstance(key, str) and bool(re.fullmatch(r"(?!hydra\b)[A-Za-z_]\w*(\.\w+)*", key))


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


def written(value: Any) -> str:
    """A value as a person writes it on a command line: text without quotes where it stays the same text."""
    if isinstance(value, str) and value:
        with suppress(HydraException):
            if OverridesParser.create().parse_override(f"key={value}").value() == value:
                return value
    return format_value(value)


def read_settings(config_name: str, arguments: Sequence[str], schema: type[S] | Named[S]) -> tuple[S, Path]:
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
    accepted = _check_overrides(config_name, expand_params(arguments), problems)
    content, folder = _compose_sound(config_name, accepted, problems)
    if problems and not _gives_values(config_name, accepted):
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
    accepted = _check_overrides(config_name, expand_params(arguments), problems)
    content, _ = _compose_sound(config_name, accepted, problems)
    if problems:
        raise ConfigError(problems)
    return content


def _compose_sound(config_name: str, accepted: Sequence[str], problems: list[Problem]) -> tuple[dict[str, Any], Path]:
    try:
        return compose_plain(config_name, accepted)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError([*problems, Problem("overrides", " ".join(accepted), str(error).splitlines()[0])]) from None


def _gives_values(config_name: str, accepted: Iterable[str]) -> bool:
    """Whether overrides do more than choose options of groups, which are sound by themselves."""
    return not {argument.split("=", 1)[0] for argument in accepted} <= {*groups(config_name), RUN_DIR}


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
        if override.key_or_group in valid or (OPEN in valid and _is_open(override.key_or_group)):
            accepted.append(text)
        else:
            problems.append(unknown("key", override.key_or_group, valid))
    return accepted


@cache
def _known_keys(config_name: str, chosen: tuple[str, ...]) -> tuple[str, ...]:
    """Every key that can be changed once these group options are chosen."""
    return (*_dotted(_content(config_name, chosen)), RUN_DIR)


@cache
def _content(config_name: str, chosen: tuple[str, ...]) -> Mapping[str, Any]:
    return compose_plain(config_name, chosen)[0]


def _parse(text: str, problems: list[Problem]) -> Override | None:
    if text.startswith("-"):
        problems.append(Problem("option", text, "is unknown", _instead_of(text)))
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


#: options of Hydra and habits from other programs, with what to write here
_INSTEAD = {
    "-m": "search with tune_student, tune_teacher or tune_distill (search_spaces/ says over what)",
    "-r": "leave it out: a command runs by itself",
    "-cn": "choose options of groups (--help lists them), or start from a file of keys with params=FILE",
    "-c": "write --cfg job",
    "-v": "see run.log in the result folder",
}
_LONG = {
    "multirun": "-m", "sweep": "-m", "run": "-r", "config-name": "-cn", "config-path": "-cn", "config-dir": "-cn",
    "config": "-cn", "cp": "-cn", "cd": "-cn", "cfg": "-c", "verbose": "-v", "debug": "-v",
}  # fmt: skip


def _instead_of(option: str) -> str:
    """What to write in place of an option that does not exist here."""
    name, _, value = option.lstrip("-").partition("=")
    known = _LONG.get(name, f"-{name}")
    if known in _INSTEAD:
        return _INSTEAD[known]
    return f"write {name}={value or 'VALUE'}, without dashes" if name else "see --help"


def _option_exists(override: Override, options: Mapping[str, list[str]], problems: list[Problem]) -> bool:
    option = str(override.value())
    if option in options[override.key_or_group]:
        return True
    problems.append(unknown(override.key_or_group, option, options[override.key_or_group]))
    return False


def unknown(what: str, value: str, valid: Iterable[str]) -> Problem:
    """A finding about a name that does not exist, with the nearest one that does."""
    valid = list(valid)
    near = difflib.get_close_matches(value, valid, n=1, cutoff=0.5) or [
        key for key in valid if key.rsplit(".", 1)[-1] == value.rsplit(".", 1)[-1]
    ]
    step = f"did you mean {near[0]}?" if near else "see --help all for every key"
    return Problem(what, value, "does not exist", step)


def _dotted(content: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in content.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            keys += _dotted(value, f"{prefix}{key}.")
    return keys


def _validate(content: Mapping[str, Any], schema: type[S], problems: list[Problem]) -> S | None:
    from pydantic import TypeAdapter, ValidationError

    try:
        # strict JSON: "3" is no number, true is no number, 3 is a float where one is wanted
        return TypeAdapter(schema).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        valid = _dotted(content)
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
    """Composed plain data as settings with absolute paths; raises ``ConfigError`` with every problem."""
    problems: list[Problem] = []
    settings = _validate(content, schema, problems)
    if settings is None:
        raise ConfigError(problems)
    return absolute(settings, Path(base))


def nested_plain(settings: Any) -> dict[str, Any]:
    """Settings as nested plain data, as YAML shows them (paths as text, tuples as lists)."""
    from src.config.descriptions import plain

    nested: dict[str, Any] = plain(settings)
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
