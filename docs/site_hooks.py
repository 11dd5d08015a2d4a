"""What MkDocs does not do by itself (`hooks` in mkdocs.yml)."""

from __future__ import annotations

import re
from typing import Any

_WIDE = "[\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef]"
_BETWEEN = re.compile(rf"(?<={_WIDE})\n[ ]*(?={_WIDE})")
_FENCED = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A line break between two Japanese characters is none: a browser would show a space."""
    parts = _FENCED.split(markdown)
    return "".join(part if place % 2 else _BETWEEN.sub("", part) for place, part in enumerate(parts))
