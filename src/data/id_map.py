"""Which raw item stands behind which index. Saved with every artefact, so that ids never slip."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from src.core.data_utils import fingerprint
from src.core.errors import ArtefactError, DataError
from src.core.paths import read_json, write_json


@dataclass(frozen=True)
class IdMap:
    """Items 0..V-1 with their raw ids and titles (``""`` where the source has none); the padding id is V."""

    raw_ids: tuple[str, ...]
    titles: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.raw_ids) != len(self.titles):
            rule = f"one title for each of {len(self.raw_ids)} items is needed"
            raise DataError.one("titles", len(self.titles), rule)
        if len(set(self.raw_ids)) != len(self.raw_ids):
            raise DataError.one("raw ids", len(self.raw_ids), "contain duplicates")

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
        """Identifies the order of raw ids and their titles."""
        return fingerprint(list(self.raw_ids), list(self.titles))

    def save(self, path: Path) -> None:
        """Write as JSON: a list of ``{index, raw_id, title}``."""
        rows = zip(self.raw_ids, self.titles, strict=True)
        write_json(path, [{"index": index, "raw_id": raw, "title": title} for index, (raw, title) in enumerate(rows)])

    @classmethod
    def load(cls, path: Path) -> IdMap:
        """Read what `save` wrote; raises ``ArtefactError`` when indices are not 0..V-1 in order."""
        rows = read_json(path)
        if not isinstance(rows, list) or not all(_is_row(row) for row in rows):
            raise ArtefactError.one("id map", str(path), "must be a list of {index, raw_id, title}")
        if [row["index"] for row in rows] != list(range(len(rows))):
            raise ArtefactError.one("id map", str(path), "its indices are not 0..V-1 in order")
        return cls(tuple(row["raw_id"] for row in rows), tuple(row["title"] for row in rows))


def _is_row(row: object) -> bool:
    # one by one: a schema would take its time over a million rows
    return (
        isinstance(row, dict)
        and type(row.get("index")) is int
        and isinstance(row.get("raw_id"), str)
        and isinstance(row.get("title"), str)
    )
