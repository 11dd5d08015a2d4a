"""The few kinds of thing that a page is made of; the template knows how each looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """Rows under headings; numbers are aligned and, in a ``sortable`` table, sorted as numbers.

    ``hints`` are the full texts of shortened headings; rows whose index is in ``marked`` stand out.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[Any]]
    sortable: bool = False
    hints: Mapping[str, str] = field(default_factory=dict)
    marked: Sequence[int] = ()
    heading: str = ""
    kind: str = "table"

    def numeric(self, column: int) -> bool:
        """Whether a column holds numbers (and gaps) only."""
        values = [row[column] for row in self.rows if row[column] is not None]
        return bool(values) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


@dataclass(frozen=True)
class Note:
    """A sentence; one with a ``verdict`` is marked with it."""

    text: str
    verdict: str = ""
    kind: str = "note"


@dataclass(frozen=True)
class Panel:
    """A plotly figure, and what it shows in words for those who do not see it.

    A ``wide`` one takes the page's whole width and is scrolled sideways on a narrow screen.
    """

    figure: Any
    words: str
    heading: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Panels:
    """Figures side by side where the screen is wide enough for it, else one below the other."""

    panels: Sequence[Panel]
    heading: str = ""
    kind: str = "panels"


@dataclass(frozen=True)
class Listing:
    """A file, or what stands for one, in small type; folded away until opened."""

    heading: str
    text: str
    kind: str = "listing"


@dataclass(frozen=True)
class Fold:
    """Blocks that are folded away until opened."""

    heading: str
    blocks: Sequence[Block]
    kind: str = "fold"


Block = Table | Note | Panels | Listing | Fold


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, its heading, one line on how to read it, and what it shows."""

    anchor: str
    heading: str
    reading: str
    blocks: Sequence[Block]
