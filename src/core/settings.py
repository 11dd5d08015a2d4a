"""How every room declares its configuration: frozen, strictly typed dataclasses whose fields carry their own notes.

A field reads ``width: Annotated[int, Field(ge=1, description="...")] = 64``. pydantic checks types and ranges wherever
the dataclass is built, in a test as well as at the command line, and refuses unknown fields.
"""

from __future__ import annotations

from pydantic import ConfigDict

#: ``@dataclass(frozen=True, config=STRICT)`` (pydantic.dataclasses) is the form of every settings class.
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=False, use_attribute_docstrings=False)
