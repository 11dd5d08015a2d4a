"""Hydra's base configs, generated from the settings: a default stands once, in the dataclass, and nowhere in `conf/`.

`register_command` gives every group of a command (a field that holds settings) the option `base`, with which the files
in `conf/<group>` begin, and the command's own keys the config `_<name>`, with which its file in `conf/` begins. A file
holds only what differs. Settings of several kinds (see `VARIANTS`) get one base a kind, `_<kind>`, in place of `base`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from hydra.core.config_store import ConfigStore

from src.pipeline.settings import EvaluateSettings, ExperimentSettings
from src.student.models import settings_types
from src.student.settings import StudentSettings

BASE = "base"

#: settings whose keys depend on a choice: the class of the field → the kinds by name, each a class of its own. A file
#: `conf/<group>/<option>.yaml` of such a group begins with ``defaults: [_<kind>, _self_]``
VARIANTS: dict[type, Callable[[], Mapping[str, type]]] = {StudentSettings: settings_types}


def register(group: str, name: str, settings_type: type) -> None:
    """Make the defaults of a settings class the Hydra config ``group/name``.

    Args:
        group: a group of configs (a folder of `conf/`).
        name: what a defaults list calls the config.
        settings_type: a settings class all of whose fields have defaults.
    """
    ConfigStore.instance().store(group=group, name=name, node=plain(settings_type()))


def register_command(name: str, schema: type) -> None:
    """Make configs of what a command's settings hold: its groups, and its own keys that have a default.

    Args:
        name: the command's own keys become the config ``_name``.
        schema: the command's settings.
    """
    own: dict[str, Any] = {}
    for field, kinds in settings_fields(schema):
        if not kinds:
            own.update(_default(field))
        for kind, settings_type in kinds.items():
            register(field.name, kind, settings_type)
    ConfigStore.instance().store(name=f"_{name}", node=own)


def settings_fields(schema: type) -> Iterator[tuple[Field[Any], Mapping[str, type]]]:
    """The fields of a settings class, each with the settings that it can hold by their configs' names.

    A plain value has none, most settings have one (`base`), settings of several kinds have one a kind.
    """
    hints = get_type_hints(schema)
    for field in fields(schema):
        yield field, _kinds(hints[field.name])


def _kinds(hint: Any) -> dict[str, type]:
    held = [part for part in (hint, *get_args(hint)) if isinstance(part, type) and is_dataclass(part)]
    for base, variants in VARIANTS.items():
        # the field names the base class, or the union of its kinds; one kind alone is settings like any other
        if held == [base] or (len(held) > 1 and all(issubclass(part, base) for part in held)):
            return {f"_{name}": kind for name, kind in variants().items()}
    return {BASE: held[0]} if held else {}


def _default(field: Field[Any]) -> dict[str, Any]:
    if field.default is not MISSING:
        return {field.name: plain(field.default)}
    if field.default_factory is not MISSING:
        return {field.name: plain(field.default_factory())}
    return {}


def plain(value: Any) -> Any:
    """Settings, or a value of theirs, as YAML shows them: nested mappings, paths as text, tuples as lists."""
    held = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return json.loads(json.dumps(held, default=str))


register_command("experiment", ExperimentSettings)
register_command("evaluate", EvaluateSettings)
