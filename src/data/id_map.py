"""Which raw item stands behind which index. Saved with every artefact, so that ids never slip."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from src.core.data_utils import fingerprint
from src.core.documents import read_json_document
from src.core.errors import ArtefactError, DataError
from src.core.paths import write_json


def raw_text(value: object) -> str:
    """An id as the id map spells it: a whole number has no decimal point, whatever type it came as."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (float, np.floating, Decimal)) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value)


@dataclass(frozen=True)
class IdMap:
    """Items 0..V-1 with their raw ids and titles (``""`` where the source has none); the padding id is V.

    ``texts`` is each item as a language model reads it: the title, unless `DatasetSettings.item_text` says more.
    ``fields`` holds, by name, the item file's fields that the text was made of.
    """

    raw_ids: tuple[str, ...]
    titles: tuple[str, ...]
    texts: tuple[str, ...] = ()
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if len(self.raw_ids) != len(self.titles):
            rule = f"one title for each of {len(self.raw_ids)} items is needed"
            raise DataError.one("titles", len(self.titles), rule)
        if len(set(self.raw_ids)) != len(self.raw_ids):
            raise DataError.one("raw ids", len(self.raw_ids), "contain duplicates")
        if not self.texts:
            object.__setattr__(self, "texts", self.titles)
        wrong = [
            name for name, column in {"texts": self.texts, **self.fields}.items() if len(column) != len(self.raw_ids)
        ]
        if wrong:
            raise DataError.one("item fields", wrong, f"one value for each of {len(self.raw_ids)} items is needed")

    @property
    def num_items(self) -> int:
        """V, the size of the catalogue."""
        return len(self.raw_ids)

    @property
    def padding_id(self) -> int:
        """V: never an item."""
        return len(self.raw_ids)

    @property
    def untitled(self) -> int:
        """How many items have no title: a teacher that reads titles cannot tell these apart."""
        return sum(not title for title in self.titles)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the order of raw ids, their titles, and their texts where these say more than the titles."""
        more = () if self.texts == self.titles else (list(self.texts),)
        return fingerprint(list(self.raw_ids), list(self.titles), *more)

    def take(self, items: Iterable[int]) -> IdMap:
        """The map of these items only, in this order."""
        kept = [int(item) for item in items]
        taken = {name: tuple(column[item] for item in kept) for name, column in self.fields.items()}
        raw_ids, titles, texts = (
            tuple(column[item] for item in kept) for column in (self.raw_ids, self.titles, self.texts)
        )
        return IdMap(raw_ids, titles, texts, taken)

    def save(self, path: Path) -> None:
        """Write as JSON: a list of ``{index, raw_id, title}``, with ``text`` and ``fields`` where they say more."""
        pairs = zip(self.raw_ids, self.titles, strict=True)
        rows: list[dict[str, Any]] = [
            {"index": i, "raw_id": raw, "title": title} for i, (raw, title) in enumerate(pairs)
        ]
        if self.texts != self.titles:
            for row, text in zip(rows, self.texts, strict=True):
                row["text"] = text
        if self.fields:
            for index, row in enumerate(rows):
                row["fields"] = {name: column[index] for name, column in self.fields.items()}
        write_json(path, rows)

    @classmethod
    def load(cls, path: Path) -> IdMap:
        """Read what `save` wrote; raises ``ArtefactError`` when indices are not 0..V-1 in order."""
        rows = read_json_document(path)
        if not isinstance(rows, list) or not all(_is_row(row) for row in rows):
            raise ArtefactError.one("id map", str(path), "must be a list of {index, raw_id, title}")
        if [row["index"] for row in rows] != list(range(len(rows))):
            raise ArtefactError.one("id map", str(path), "its indices are not 0..V-1 in order")
        names = list(rows[0].get("fields", {})) if rows else []
        if any(list(row.get("fields", {})) != names for row in rows):
            raise ArtefactError.one("id map", str(path), "its items have different fields")
        return cls(
            tuple(row["raw_id"] for row in rows),
            tuple(row["title"] for row in rows),
            tuple(row.get("text", row["title"]) for row in rows),
            {name: tuple(row["fields"][name] for row in rows) for name in names},
        )


def _is_row(row: object) -> bool:
    # one by one: a schema would take its time over a million rows
    return (
        isinstance(row, dict)
        and type(row.get("index")) is int
        and isinstance(row.get("raw_id"), str)
        and isinstance(row.get("title"), str)
        and isinstance(row.get("text", ""), str)
        and isinstance(row.get("fields", {}), dict)
        and all(isinstance(part, str) for pair in row.get("fields", {}).items() for part in pair)
    )
