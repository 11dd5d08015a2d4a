"""What an adapter tells of itself, and where the adapters that register themselves are found."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from src.core.errors import ConfigError
from src.core.plugins import find_object, require_callable
from src.data.interactions import Interactions
from src.data.pre_split import PreSplit
from src.data.settings import DatasetSettings

Load = Callable[[DatasetSettings], Interactions | PreSplit]


@dataclass(frozen=True)
class Adapter:
    """How to read one format.

    ``reads`` names the settings that it reads beyond the shared ones; ``pre_split`` says whether the source comes with
    its splits, so that the settings of splitting do not apply. A format that has both forms gives a function of the
    settings. ``files`` names the files and folders that decide what `load` returns, those alone: what is read from them
    may then be kept (`src.pipeline.prepared_data`); None: it is read anew each time.
    """

    load: Load
    reads: frozenset[str] = frozenset()
    pre_split: bool | Callable[[DatasetSettings], bool] = False
    files: Callable[[DatasetSettings], list[Path]] | None = None

    def is_pre_split(self, settings: DatasetSettings) -> bool:
        """Whether the source that these settings name comes with its splits."""
        return self.pre_split(settings) if callable(self.pre_split) else self.pre_split


_REGISTERED: dict[str, Adapter] = {}


def register(name: str, adapter: Adapter) -> None:
    """Make an adapter known as ``dataset.adapter=name``; a module of this package calls it once, at its end."""
    if _REGISTERED.get(name, adapter) != adapter:
        raise ValueError(f"two adapters are called {name}")
    _REGISTERED[name] = adapter


@cache
def _import_all() -> None:
    package = importlib.import_module(__package__ or "src.data.adapters")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


class _Adapters(Mapping[str, Adapter]):
    """Ours by name; every module of the package is imported when the first one is asked for."""

    def __getitem__(self, name: str) -> Adapter:
        _import_all()
        return _REGISTERED[name]

    def __iter__(self) -> Iterator[str]:
        _import_all()
        return iter(sorted(_REGISTERED))

    def __len__(self) -> int:
        _import_all()
        return len(_REGISTERED)


#: Every adapter of this package by its name.
ADAPTERS: Mapping[str, Adapter] = _Adapters()


def find_adapter(name: str) -> Adapter:
    """One of ours, or what the user's own ``package.module:factory`` returns.

    Raises ``ConfigError`` for a name that is not ours and cannot be imported, and for a factory that returns anything
    but an `Adapter`.
    """
    if name in ADAPTERS:
        return ADAPTERS[name]
    field = "dataset.adapter"
    step = f"use {', '.join(ADAPTERS)}, or package.module:factory, a function that returns an Adapter"
    found = find_object(field, name, step)
    if callable(found):
        require_callable(field, name, found, "factory()")
        found = found()
    if not isinstance(found, Adapter):
        raise ConfigError.one(field, name, f"gave a {type(found).__name__}, not an Adapter", step)
    return found
