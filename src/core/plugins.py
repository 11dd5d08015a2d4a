"""Interfaces that are open to the user's own code: a setting names one of ours, or ``package.module:factory``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from src.core.errors import ConfigError

S = TypeVar("S")
P = TypeVar("P")


def build_plugin(field: str, name: str, ours: Mapping[str, Callable[[S], P]], settings: S) -> P:
    """What ``ours[name]``, or the factory that ``name`` imports, makes of the settings.

    Raises ``ConfigError`` about ``field`` for a name that is not ours and cannot be imported.
    """
    if name in ours:
        return ours[name](settings)
    return find_plugin(field, name, ours)(settings)


def find_plugin(field: str, name: str, ours: Iterable[str]) -> Callable[..., Any]:
    """The factory that ``package.module:factory`` names; raises as `build_plugin`."""
    module, _, factory = name.partition(":")
    step = f"use {', '.join(ours)}, or package.module:factory"
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # TypeError: a relative name
        raise ConfigError.one(field, name, f"cannot be found ({error})", step) from None
    if not callable(found):
        raise ConfigError.one(field, name, f"names a {type(found).__name__}, not a factory", step)
    return found
