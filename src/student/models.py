"""Students by name: every file of `src/student/architectures/` is one, and so is a factory of your own."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

import src.student.architectures as own
from src.core.errors import ConfigError, ProblemsFound
from src.core.plugins import find_plugin, require_callable
from src.core.settings import STRICT
from src.student.base import ARCHITECTURES, Architecture, ClosedForm, Recommender, SequenceStudent
from src.student.settings import NetworkSettings, StudentSettings

_FIELD = "student.architecture"
_CONTRACT = "run tests/contracts/student.py on it (docs/extend/add_a_student.md)"


@dataclass(frozen=True, config=STRICT)
class OwnStudentSettings(NetworkSettings):
    """A student of your own: ``factory(settings, num_items, window)`` returns a `SequenceStudent`.

    ``tests/contracts/student.py`` is the suite that any student must pass.
    """

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
    factory = find_plugin(_FIELD, name, known)
    return Architecture(name, OwnStudentSettings, partial(_build_own, name, factory), closed_form=False)


def _build_own(
    name: str, factory: Callable[..., Any], settings: NetworkSettings, num_items: int, window: int
) -> SequenceStudent:
    """What a user's factory makes; raises ``ConfigError`` where that is not what every student is."""
    shape = "factory(settings, num_items, window)"
    require_callable(_FIELD, name, factory, shape, settings, num_items, window, step=_CONTRACT)
    model = factory(settings, num_items, window)
    if not isinstance(model, SequenceStudent):
        raise _breaks(name, f"makes a {type(model).__name__}, and no SequenceStudent (src/student/base.py)")
    for said, found, wanted in (("items", model.num_items, num_items), ("window", model.window, window)):
        if found != wanted:
            raise _breaks(name, f"makes a student with {said} = {found} where {wanted} was asked for")
    _check_scores(name, model)
    return model


@torch.no_grad()
def _check_scores(name: str, model: SequenceStudent) -> None:
    """Raises ``ConfigError`` unless a history of one item and an empty one get finite scores of the right shape."""
    history = torch.full((2, model.window), model.padding_id)
    history[0, 0] = 0
    training = model.training
    try:
        representation = model.eval().encode(history, torch.tensor([1, 0]), None)
        logits = model.logits(representation, None)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise _breaks(name, f"makes a student that cannot score a history ({error})") from None
    finally:
        model.train(training)
    if logits.shape != (2, model.num_items):
        raise _breaks(name, f"scores two histories as {list(logits.shape)}, not as {[2, model.num_items]}")
    if not bool(torch.isfinite(logits).all()):
        raise _breaks(name, "gives an empty history, or one of a single item, scores that are not finite")


def _breaks(name: str, rule: str) -> ProblemsFound:
    return ConfigError.one(_FIELD, name, rule, _CONTRACT)


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
