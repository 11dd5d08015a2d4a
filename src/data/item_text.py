"""An item as a language model reads it: a template over the fields that the source knows of it."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from src.core.errors import ConfigError

#: Other names under which sources keep a field.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "year": ("release_year", "publication_year", "pub_year"),
    "genres": ("genre", "class", "categories", "category", "tags"),
    "author": ("authors", "creator"),
    "brand": ("store", "manufacturer"),
}

_OPEN, _CLOSE = "([{<\"'“‘", ")]}>\"'”’"
_LEADING = re.compile(r"^[\s,;:/|·–—-]+")


@dataclass(frozen=True)
class _Place:
    """A field with the punctuation that goes when it is missing."""

    before: str
    field: str
    after: str


@dataclass(frozen=True)
class ItemTemplate:
    """A parsed template; raises ``ConfigError`` for one that cannot be read or names no field."""

    places: tuple[_Place, ...]
    end: str

    @classmethod
    def parse(cls, template: str) -> ItemTemplate:
        """Read ``"{title} ({year}), {genres}"``; ``{{`` is a brace."""
        step = "write it as '{title} ({year}), {genres}'"
        try:
            parts = list(string.Formatter().parse(template))
        except ValueError as error:
            raise ConfigError.one("dataset.item_text", template, f"is no template ({error})", step) from None
        if any(spec or conversion for _, _, spec, conversion in parts) or any(
            name is not None and not re.fullmatch(r"\w+", name) for _, name, _, _ in parts
        ):
            raise ConfigError.one("dataset.item_text", template, "may hold plain field names in braces only", step)
        literals, names = [""], []
        for text, name, _, _ in parts:  # a doubled brace ends a literal as well
            literals[-1] += text
            if name is not None:
                names.append(name)
                literals.append("")
        if not names:
            raise ConfigError.one("dataset.item_text", template, "names no field", step)
        places = []
        for number, name in enumerate(names):
            before, after = literals[number], ""
            following = literals[number + 1]
            if before and following and (kind := _OPEN.find(before[-1])) >= 0 and following[0] == _CLOSE[kind]:
                after, literals[number + 1] = following[0], following[1:]
            places.append(_Place(before, name, after))
        return cls(tuple(places), literals[len(names)])

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that it names, in their order, each once."""
        return tuple(dict.fromkeys(place.field for place in self.places))

    def render(self, values: Mapping[str, str]) -> str:
        """The text of one item; a field whose value is empty goes together with the punctuation around it."""
        if len(self.places) == 1 and self.places[0] == _Place("", "title", "") and not self.end:
            return values["title"]
        present = [place for place in self.places if values[place.field]]
        if not present:
            return ""
        text = "".join(f"{place.before}{values[place.field]}{place.after}" for place in present)
        return (_LEADING.sub("", text) if present[0] is not self.places[0] else text) + self.end


@dataclass(frozen=True)
class TextSource:
    """Where embeddings of items' texts come from: who wants one of a new item must ask the same model in the same way.

    ``llm``: a folder or hub id, as `teacher.llm` named it; ``fingerprint``: of that model; ``title_tokens``, ``dtype``:
    how it read the texts; ``template``: of a text (`dataset.item_text`).
    """

    llm: str
    fingerprint: str
    title_tokens: Annotated[int, Field(ge=1)]
    dtype: Literal["auto", "float32", "bfloat16"]
    template: str


def source_of(name: str, there: Sequence[str]) -> str | None:
    """The column that holds a field, under its name or another that sources give it; None where there is none."""
    lower = {column.lower(): column for column in reversed(there)}
    return next((lower[alias] for alias in (name.lower(), *ALIASES.get(name.lower(), ())) if alias in lower), None)
