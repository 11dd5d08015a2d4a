"""Item titles as people write them, from the forms in which catalogues keep them."""

from __future__ import annotations

import re
from typing import Literal

TitleHandling = Literal["corrected", "as_released"]

_YEAR = re.compile(r"\s*\((\d{4})\)(?:\s*\(V\))?\s*$")
_ARTICLE = re.compile(r"^(?P<name>.+), (?P<article>The|A|An)(?P<other> \(.*\))?$")
_YEAR_WIDTH = len(" (1995)")


def move_article(title: str) -> str:
    """``Full Monty, The`` → ``The Full Monty``: an English article at the end (or before a bracketed other title)."""
    match = _ARTICLE.match(title)
    if match is None:
        return title
    return f"{match['article']} {match['name']}{match['other'] or ''}"


def with_year(title: str, year: str) -> str:
    """``Heat (1995)``; the title alone where the year is no four-digit number."""
    return f"{title} ({year})" if re.fullmatch(r"\d{4}", year) else title


def movie_title(field: str, handling: TitleHandling, keep_year: bool = False) -> str:
    """A MovieLens title field (``Full Monty, The (1997)``) as text.

    ``as_released`` repeats iLoRA's rule with its faults: the last seven characters go, year or not, and the first of
    ``, The``, ``, A``, ``, An`` that occurs anywhere is moved, out of every place and out of words.
    """
    if handling == "as_released":
        name = field[:-_YEAR_WIDTH]
        found = next((article for article in ("The", "A", "An") if f", {article}" in name), None)
        return name if found is None else f"{found} {name.replace(f', {found}', '')}"
    year = _YEAR.search(field)
    if year is None:
        return move_article(field.strip())
    title = move_article(field[: year.start()].strip())
    return with_year(title, year[1]) if keep_year else title
