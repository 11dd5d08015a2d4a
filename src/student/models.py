"""Students by name: every file of `src/student/architectures/` is one, and so is a factory of your own."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

import src.student.architectures as own
from src.core.errors import ConfigError
from src.core.plugins import find_plugin
from src.core.settings import STRICT
from src.student.base import ARCHITECTURES, Architecture, ClosedForm, Recommender, SequenceStudent
from src.student.settings import NetworkSettings, StudentSettings

_FIELD = "student.architecture"


@dataclass(frozen=True, config=STRICT)
class OwnStudentSettings(NetworkSettings):
    """A student of your own: ``factory(settings, num_items, window)`` returns a `SequenceStudent`."""

    options: Annotated[
        dict[str, bool | int | float | str], Field(description="whatever your factory reads: {depth: 3, ...}")
    ] = Field(default_factory=dict)


@cache
def architectures() -> Mapping[str, Architecture]:
    """Every architecture of this project by name, in alphabetical order."""
    for module in pkgutil.iter_modules(own.__path__):
        importlib.import_module(f"{own.__name__}.{module.name}")
    return dict(sorted(ARCHITECTURES.items()))


def architecture(name: str) -> Architecture:
    """The architecture of that name, or the one that ``package.module:factory`` makes.

    Raises:
        ConfigError: there is none of that name, or the factory cannot be imported.
    """
    known = architectures()
    if name in known:
        return known[name]
    return Architecture(name, OwnStudentSettings, find_plugin(_FIELD, name, known), closed_form=False)


def settings_type(name: str) -> type[StudentSettings]:
    """The class of an architecture's settings; raises as `architecture`."""
    if name not in architectures() and ":" in name:
        return OwnStudentSettings  # imported when it is built, so that a configuration can be read without it
    return architecture(name).settings


def settings_types() -> dict[str, type[StudentSettings]]:
    """Every class of settings by the option of ``conf/student`` that begins with its defaults."""
    return {**{name: kind.settings for name, kind in architectures().items()}, "own": OwnStudentSettings}


def student_settings(architecture: str, **fields: Any) -> StudentSettings:
    """Settings of an architecture; raises ``pydantic.ValidationError`` for a field that it does not have."""
    return settings_type(architecture)(architecture=architecture, **fields)


def build_recommender(settings: StudentSettings, num_items: int, window: int) -> Recommender:
    """A freshly initialised student of any kind; draws from torch's global stream.

    Args:
        settings: of any architecture.
        num_items: V.
        window: the dataset's, which counts where the settings name none.

    Raises:
        ConfigError: the architecture does not exist, or cannot be built with these sizes.
    """
    kind = architecture(settings.architecture)
    return kind.build(settings, num_items, settings.window or window)


def build_student(settings: NetworkSettings, num_items: int, window: int) -> SequenceStudent:
    """As `build_recommender`, for a network.

    Raises:
        ConfigError: as `build_recommender`, and for a model that is computed in closed form.
    """
    model = build_recommender(settings, num_items, window)
    if not isinstance(model, SequenceStudent):
        rule = "is computed in closed form: it cannot be trained by gradient descent"
        raise ConfigError.one(_FIELD, settings.architecture, rule, "use student=transformer, or tune_student")
    return model


def require_network(settings: StudentSettings) -> NetworkSettings:
    """The settings, of a student that is trained by gradient descent; raises ``ConfigError`` for any other."""
    if not isinstance(settings, NetworkSettings):
        rule = "is computed in closed form: nothing can be distilled into it"
        raise ConfigError.one(_FIELD, settings.architecture, rule, "use student=transformer, or tune_student")
    return settings


def closed_forms() -> list[str]:
    """The architectures that need no gradient descent."""
    return [name for name, kind in architectures().items() if kind.closed_form]


def build_closed_form(settings: StudentSettings, num_items: int, window: int) -> ClosedForm:
    """As `build_recommender`, for a model in closed form; raises ``ConfigError`` for any other."""
    model = build_recommender(settings, num_items, window)
    if not isinstance(model, ClosedForm):
        rule = "is no model in closed form"
        raise ConfigError.one(_FIELD, settings.architecture, rule, f"use one of {', '.join(closed_forms())}")
    return model
