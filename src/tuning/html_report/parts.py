"""What sections are made of; `templates/parts.html` knows how each part looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ReportTable:
    """Rows under headings; numbers are aligned and, in a ``sortable`` table, sorted as numbers.

    ``hints`` are the full texts of shortened headings; rows whose index is in ``marked`` stand out.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[Any]]
    sortable: bool = True
    hints: Mapping[str, str] = field(default_factory=dict)
    marked: Sequence[int] = ()

    def numeric(self, column: int) -> bool:
        """Whether a column holds numbers (and gaps) only."""
        values = [row[column] for row in self.rows if row[column] is not None]
        return bool(values) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


@dataclass(frozen=True)
class Panel:
    """A plotly figure, and what it shows in words for those who do not see it."""

    figure: Any
    words: str
    heading: str = ""
