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
    """A sentence."""

    text: str
    kind: str = "note"


@dataclass(frozen=True)
class Verdict:
    """A sentence with its judgement before it."""

    verdict: str
    text: str
    kind: str = "verdict"


@dataclass(frozen=True)
class Figure:
    """A plotly figure and the heading over it (may be empty); in a ``brushed`` one dragging keeps some lines."""

    figure: Any
    heading: str = ""
    brushed: bool = False
    kind: str = "figure"


@dataclass(frozen=True)
class Listing:
    """A file, or what stands for one, in small type; folded away until opened when ``folded``."""

    heading: str
    text: str
    folded: bool = False
    kind: str = "listing"


Block = Table | Note | Verdict | Figure | Listing


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, its heading, one line on how to read it (may be empty), and what it shows."""

    anchor: str
    heading: str
    reading: str
    blocks: Sequence[Block]
