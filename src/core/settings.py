"""How every room declares its configuration: frozen, strictly typed dataclasses whose fields carry their own notes.

A field reads ``width: Annotated[int, Field(ge=1, description="...")] = 64``. pydantic checks types and ranges wherever
the dataclass is built, in a test as well as at the command line, and refuses unknown fields.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pydantic import ConfigDict

#: ``@dataclass(frozen=True, config=STRICT)`` (pydantic.dataclasses) is the form of every settings class.
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=False, use_attribute_docstrings=False)

#: how often a training is saved decides nothing of what it learns
_SAVING = "checkpoint_minutes"


def deciding(settings: Any) -> dict[str, Any]:
    """Settings (a dataclass) as nested plain values, without those that decide no result: what a key is made of."""
    return _without_saving(asdict(settings))


def _without_saving(values: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in values.items() if name != _SAVING}
    return {name: _without_saving(value) if isinstance(value, dict) else value for name, value in kept.items()}
