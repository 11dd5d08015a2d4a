"""Interfaces that are open to the user's own code: a setting names one of ours, or ``package.module:factory``.

Settings travel with results, and results come from others. So a module that lies in a result folder is never imported:
whoever prepared the folder would run code here. Nor is one that lies with the document that names it; the readers of
documents see to that (`src.core.code_places`).
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from src.core.code_places import module_places
from src.core.errors import ConfigError
from src.core.paths import MANIFEST
from src.core.result_files import COMMAND_FILE

S = TypeVar("S")
P = TypeVar("P")

_CORRECT = "correct the factory"


def build_plugin(field: str, name: str, ours: Mapping[str, Callable[[S], P]], settings: S) -> P:
    """What ``ours[name]``, or the factory that ``name`` imports, makes of the settings.

    Raises ``ConfigError`` about ``field`` for a name that is not ours and cannot be imported, and for a factory that
    cannot be called with the settings.

    Args:
        field: the setting that names it.
        name: its value.
        ours: this project's own, by name.
        settings: what the factory is called with.
    """
    if name in ours:
        return ours[name](settings)
    factory = find_plugin(field, name, ours)
    require_callable(field, name, factory, "factory(settings)", settings)
    made: P = factory(settings)
    return made


def find_plugin(field: str, name: str, ours: Iterable[str]) -> Callable[..., Any]:
    """The factory that ``package.module:factory`` names; raises as `find_object`, and where it is none."""
    step = f"use {', '.join(ours)}, or package.module:factory"
    found = find_object(field, name, step)
    if not callable(found):
        raise ConfigError.one(field, name, f"names a {type(found).__name__}, not a factory", step)
    factory: Callable[..., Any] = found
    return factory


def build_own(
    field: str, name: str, ours: Iterable[str], shape: str, kind: type[P], *arguments: Any, step: str = _CORRECT
) -> P:
    """What the user's own factory makes.

    Args:
        field: the setting that names it.
        name: its value, ``package.module:factory``.
        ours: what else may stand there.
        shape: how the factory is called, in words.
        kind: what it must make.
        arguments: what it is called with.
        step: what to do about a factory that is no such one.

    Raises:
        ConfigError: it cannot be imported, takes other arguments, or makes something else.
    """
    factory = find_plugin(field, name, ours)
    require_callable(field, name, factory, shape, *arguments, step=step)
    made = factory(*arguments)
    if not isinstance(made, kind):
        rule = f"makes a {type(made).__name__}, and no {kind.__name__} ({kind.__module__})"
        raise ConfigError.one(field, name, rule, step)
    return made


def find_object(field: str, name: str, step: str) -> Any:
    """What ``package.module:name`` names.

    Args:
        field: the setting that names it.
        name: its value.
        step: what else may stand there.

    Raises:
        ConfigError: it cannot be imported, or its module lies in a result folder.
    """
    module, _, attribute = name.partition(":")
    for place in module_places(module):
        for folder in place.parents:
            if _holds_a_result(folder):
                rule = f"is code that lies in a result folder ({folder}), which is never run"
                raise ConfigError.one(field, name, rule, "keep your own modules outside of result folders")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # TypeError: a relative name
        raise ConfigError.one(field, name, f"cannot be found ({error})", step) from None


def require_callable(
    field: str, name: str, factory: Callable[..., Any], shape: str, *arguments: Any, step: str = _CORRECT
) -> None:
    """Look at whether a factory takes these arguments, before it is called.

    Args:
        field: the setting that names it.
        name: its value.
        factory: what it names.
        shape: how it is called, in words.
        arguments: what it is called with.
        step: what to do where it does not.

    Raises:
        ConfigError: it does not.
    """
    try:
        inspect.signature(factory).bind(*arguments)
    except TypeError as error:
        raise ConfigError.one(field, name, f"is not callable as {shape}: {error}", step) from None
    except ValueError:
        return  # a function written in C that does not tell


def _holds_a_result(folder: Path) -> bool:
    """Whether a command or a stage of this project wrote here; other programs have a `manifest.json`, too."""
    if (folder / COMMAND_FILE).is_file():
        return True
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and bool({"kind", "fingerprints"} & manifest.keys())
