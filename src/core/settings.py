"""How every room declares its configuration: frozen, strictly typed dataclasses whose fields carry their own notes.

A field reads ``width: Annotated[int, Field(ge=1, description="...")] = 64``. pydantic checks types and ranges wherever
the dataclass is built, in a test as well as at the command line, and refuses unknown fields.
"""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from typing import Any

from pydantic import ConfigDict

#: ``@dataclass(frozen=True, config=STRICT)`` (pydantic.dataclasses) is the form of every settings class.
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=False, use_attribute_docstrings=False)

#: how often a training is saved and how its kernels are launched (`student.graphs`) decide nothing of what it learns
NOT_DECIDING = frozenset({"checkpoint_minutes", "graphs"})


def plain_value(value: Any) -> Any:
    """Settings, or a value of theirs, as YAML shows them: nested mappings, paths as text, tuples as lists."""
    held = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return json.loads(json.dumps(held, default=str))


def nested_plain(settings: Any) -> dict[str, Any]:
    """Settings as nested plain data, as YAML shows them."""
    nested: dict[str, Any] = plain_value(settings)
    return nested


def set_dotted(nested: dict[str, Any], key: str, value: Any) -> None:
    """Set what stands at a dotted key.

    Args:
        nested: plain settings, changed in place.
        key: such as ``student.loop.epochs``; its groups must be there.
        value: what stands there from now on.
    """
    *groups, field = key.split(".")
    for group in groups:
        nested = nested[group]
    nested[field] = value


def deciding(settings: Any) -> dict[str, Any]:
    """Settings (a dataclass) as nested plain values, without those that decide no result: what a key is made of."""
    return _deciding(settings, asdict(settings))


def _deciding(settings: Any, values: dict[str, Any]) -> dict[str, Any]:
    """As `deciding`, of declared fields alone: an own student's option may be called like one of them."""
    kept = {name: value for name, value in values.items() if name not in NOT_DECIDING}
    for name in kept:
        if is_dataclass(part := getattr(settings, name)):
            kept[name] = _deciding(part, kept[name])
    return kept
