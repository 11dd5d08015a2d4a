"""What the command line says about settings without importing them: names, notes, kinds and defaults as plain data.

Describing imports every settings class, and with them torch; `src.config.base_configs` keeps the outcome on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, NotRequired, TypedDict, get_args, get_type_hints

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from src.core.settings import plain_value

#: what a defaults list in `conf/` calls the config of settings of which there is one kind
BASE = "base"


class FieldDescription(TypedDict):
    """A field: ``note`` and ``default`` (unless it must be given) of a plain value; ``about`` and ``kinds`` (the
    settings that it can hold, by the names of their configs) of settings."""

    note: str
    about: str
    kinds: dict[str, SettingsDescription]
    default: NotRequired[Any]


class SettingsDescription(TypedDict):
    """A class of settings: the first line about it, and its fields in their order."""

    about: str
    fields: dict[str, FieldDescription]


class CommandDescription(TypedDict):
    """A command's settings, and the defaults of its own keys: of its class and of each that this one extends, by the
    classes' short names."""

    own: dict[str, dict[str, Any]]
    settings: SettingsDescription


def _students() -> tuple[type, Mapping[str, type]]:
    from src.student.models import settings_types
    from src.student.settings import StudentSettings

    return StudentSettings, settings_types()


#: settings whose keys depend on a choice: a function that gives the class of the field, and the kinds by name, each a
#: class of its own. A file `conf/<group>/<option>.yaml` of such a group begins with ``defaults: [_<kind>, _self_]``
VARIANTS: list[Callable[[], tuple[type, Mapping[str, type]]]] = [_students]


def describe_command(schema: type) -> CommandDescription:
    """The settings of a command as plain data that JSON can hold."""
    chain = [parent for parent in reversed(schema.__mro__) if is_dataclass(parent)]
    own = {parent.__name__.removesuffix("Settings").lower(): _own_defaults(describe(parent)) for parent in chain}
    return {"own": own, "settings": describe(schema)}


def _own_defaults(described: SettingsDescription) -> dict[str, Any]:
    plain_ones = {name: field for name, field in described["fields"].items() if not field["kinds"]}
    return {name: field["default"] for name, field in plain_ones.items() if "default" in field}


def describe(settings: type) -> SettingsDescription:
    """A settings class, with those inside it, as plain data that JSON can hold."""
    plain_hints, hints = get_type_hints(settings), get_type_hints(settings, include_extras=True)
    described: dict[str, FieldDescription] = {}
    for field in fields(settings):
        base, kinds = settings_kinds(plain_hints[field.name])
        described[field.name] = {
            "note": note(hints[field.name]),
            "about": docstring_summary(base) if base else "",
            "kinds": {name: describe(kind) for name, kind in kinds.items()},
        }
        if (default := _default(field)) is not MISSING:
            described[field.name]["default"] = plain_value(default)
    return {"about": docstring_summary(settings), "fields": described}


def settings_kinds(hint: Any) -> tuple[type | None, dict[str, type]]:
    """The settings that a field of this type can hold.

    Returns:
        Their common class and the kinds by their configs' names: none of a plain value, `base` of most settings, one a
        kind of settings of several kinds.
    """
    held = [part for part in (hint, *get_args(hint)) if isinstance(part, type) and is_dataclass(part)]
    for variants in VARIANTS:
        base, kinds = variants()
        # the field names the base class, or the union of its kinds; one kind alone is settings like any other
        if held == [base] or (len(held) > 1 and all(issubclass(part, base) for part in held)):
            return base, {f"_{name}": kind for name, kind in kinds.items()}
    return (held[0], {BASE: held[0]}) if held else (None, {})


def _default(field: Field[Any]) -> Any:
    value = field.default if field.default_factory is MISSING else field.default_factory()
    if isinstance(value, FieldInfo):
        value = value.get_default(call_default_factory=True)
    return MISSING if value is PydanticUndefined else value


def note(annotation: Any) -> str:
    """What a field's annotation says about it."""
    for part in getattr(annotation, "__metadata__", ()):
        if isinstance(part, FieldInfo):
            return part.description or ""
    return ""


def docstring_summary(settings: type) -> str:
    """The first line of a class's docstring."""
    return str(settings.__doc__).strip().splitlines()[0]
