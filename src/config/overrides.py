"""What a command line may override: which keys and options there are, and how a value is written."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from src.config.composition import OPEN, RUN_DIR, groups, is_open, known_keys
from src.core.code_places import require_no_code_beside
from src.core.documents import parse_yaml, read_document
from src.core.errors import ArtefactError, ConfigError, Problem, first_line

PARAMS = "params"


def expand_params(arguments: Sequence[str]) -> list[str]:
    """Replace ``params=FILE`` by the overrides that the file holds; what else stands on the command line wins.

    Raises ``ConfigError`` when the file cannot be read, is no mapping, uses a key twice, holds values that no override
    can say, says anything to Hydra itself, or names code that lies with it.
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
    used = {key: value for key, value in content.items() if key not in taken}
    require_no_code_beside(path, used)
    return [f"{key}={format_value(value)}" for key, value in used.items()] + rest


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


def gives_values(config_name: str, accepted: Iterable[str]) -> bool:
    """Whether overrides do more than choose options of groups, which are sound by themselves."""
    return not {argument.split("=", 1)[0] for argument in accepted} <= {*groups(config_name), RUN_DIR}


def check_overrides(config_name: str, overrides: Sequence[str], problems: list[Problem]) -> list[str]:
    """The overrides that can be composed; the others become problems.

    Args:
        config_name: a config in `conf/`.
        overrides: arguments of the command line.
        problems: what is found is added here.
    """
    parsed = [(text, o) for text in overrides if (o := _parse(text, problems)) is not None]
    options = groups(config_name)
    chosen = [text for text, o in parsed if o.key_or_group in options and _option_exists(o, options, problems)]
    valid = known_keys(config_name, tuple(chosen))
    accepted = list(chosen)
    for text, override in parsed:
        if override.key_or_group in options:
            continue
        if override.key_or_group in valid or (OPEN in valid and is_open(override.key_or_group)):
            accepted.append(text)
        else:
            problems.append(unknown("key", override.key_or_group, valid))
    return accepted


def _parse(text: str, problems: list[Problem]) -> Override | None:
    if text.startswith("-"):
        problems.append(Problem("option", text, "is unknown", _instead_of(text)))
        return None
    try:
        override: Override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        if "=" not in text:
            problems.append(Problem("override", text, "names no value", "write key=value, --help lists the keys"))
            return None
        step = "write key=value, and quotes around a value with special characters: 'key=\"~/a b\"'"
        problems.append(Problem("override", text, first_line(error), step))
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
    key = name.replace("-", "_")  # as the keys here are written
    return f"write {key}={value or 'VALUE'}, without dashes" if name else "see --help"


def _option_exists(override: Override, options: Mapping[str, list[str]], problems: list[Problem]) -> bool:
    option = str(override.value())
    if option in options[override.key_or_group]:
        return True
    problems.append(unknown(override.key_or_group, option, options[override.key_or_group]))
    return False


def unknown(what: str, value: str, valid: Iterable[str]) -> Problem:
    """A finding about a name that does not exist, with the nearest one that does.

    Args:
        what: the field that holds the name.
        value: the name.
        valid: the names that exist.
    """
    valid = list(valid)
    near = difflib.get_close_matches(value, valid, n=1, cutoff=0.5) or [
        key for key in valid if key.rsplit(".", 1)[-1] == value.rsplit(".", 1)[-1]
    ]
    step = f"did you mean {near[0]}?" if near else "see --help all for every key"
    return Problem(what, value, "does not exist", step)
