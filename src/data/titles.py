"""Item titles as people write them, from the forms in which catalogues keep them."""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Literal

TitleHandling = Literal["corrected", "as_released"]

_YEAR = re.compile(r"\s*\((\d{4})\)(?:\s*\(V\))?\s*$")
_ARTICLE = re.compile(r"^(?P<name>.+), (?P<article>The|A|An)(?P<other> \(.*\))?$")
_YEAR_WIDTH = len(" (1995)")

#: How programs write that there is no value. A title that is exactly one of these is missing.
MISSING = frozenset({"", "nan", "NaN", "None", "none", "null", "NULL", "<NA>", "<na>", "\\N"})

_TAGS = (
    "a|abbr|b|big|br|center|cite|code|div|em|font|h[1-6]|hr|i|img|li|ol|p|s|small|span|strong|sub|sup|table|td|tr|u|ul"
)
_TAG = re.compile(rf"</?(?:{_TAGS})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[a-zA-Z][a-zA-Z0-9]*);")
#: categories of characters that show nothing: controls, formats (zero width), unassigned, separators
_INVISIBLE = ("Cc", "Cf", "Cn", "Zs", "Zl", "Zp")
#: letters and symbols that are drawn as nothing: Hangul fillers, the empty Braille pattern
_BLANKS = "\u115f\u1160\u3164\uffa0\u2800"


def visible(text: str) -> bool:
    """Whether a reader sees anything of this text."""
    if text.isascii() and text.isprintable():
        return text.strip() != ""
    return any(unicodedata.category(c) not in _INVISIBLE and c not in _BLANKS for c in text)


def clean_title(title: str) -> str:
    """A title as people write it: HTML's entities and tags resolved, its lines joined; ``""`` where it is missing.

    Missing is what shows nothing (zero-width characters) and what programs write for no value (``nan``, ``null``).
    Text without any of this comes back as it is, stripped.
    """
    text = title.strip()
    if text in MISSING or not visible(text):
        return ""
    if _ENTITY.search(text) or _TAG.search(text):
        # an entity may hide a tag or, saved twice, another entity
        for _ in range(2):
            text = _TAG.sub(" ", html.unescape(text))
        text = " ".join(text.split())
    return " ".join(text.split()) if any(mark in text for mark in "\n\r\t\v\f") else text


def move_article(title: str) -> str:
    """``Full Monty, The`` → ``The Full Monty``: an English article at the end (or before a bracketed other title)."""
    match = _ARTICLE.match(title)
    if match is None:
        return title
    return f"{match['article']} {match['name']}{match['other'] or ''}"


def with_year(title: str, year: str) -> str:
    """``Heat (1995)``; the title alone where the year is no four-digit number."""
    return f"{title} ({year})" if re.fullmatch(r"\d{4}", year) else title


def year_of(field: str) -> str:
    """The year at the end of a MovieLens title field; ``""`` where there is none."""
    year = _YEAR.search(field)
    return "" if year is None else year[1]


def movie_title(field: str, handling: TitleHandling, keep_year: bool = False) -> str:
    """A MovieLens title field (``Full Monty, The (1997)``) as text.

    ``as_released`` repeats iLoRA's rule with its faults: the last seven characters go, year or not, and the first of
    ``, The``, ``, A``, ``, An`` that occurs anywhere is moved, out of every place and out of words.

    Args:
        field: as it stands in the source.
        handling: ``as_released``, or else the rule that is right.
        keep_year: whether the year stays behind a title that is made by that rule.
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
