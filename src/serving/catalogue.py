"""The items that a student knows, by the ids that its users know them by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from src.core.data_utils import pad_right
from src.core.errors import ArtefactError
from src.data.id_map import IdMap, raw_text

_COLUMNS = ("index", "raw_id", "title")
_COUNT = "training_count"


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The id map and, where it is known, how often each item was a training target (``[V]`` int64)."""

    id_map: IdMap
    counts: NDArray[np.int64] | None = None

    @property
    def num_items(self) -> int:
        """The number of items, V."""
        return self.id_map.num_items

    @cached_property
    def index(self) -> dict[str, int]:
        """The index of each raw id."""
        return {raw: place for place, raw in enumerate(self.id_map.raw_ids)}

    @cached_property
    def raw_ids(self) -> pa.Array:
        """Every raw id, in the order of the indices."""
        return pa.array(self.id_map.raw_ids, pa.string())

    @cached_property
    def titles(self) -> pa.Array:
        """Every title, in the order of the indices."""
        return pa.array(self.id_map.titles, pa.string())

    @cached_property
    def folded_titles(self) -> tuple[str, ...]:
        """Titles without distinction of case, to be searched."""
        return tuple(title.casefold() for title in self.id_map.titles)

    def known(self, raw_ids: Iterable[object]) -> tuple[list[int], list[str]]:
        """The indices of the ids that are in the catalogue, in order, and the ids that are not."""
        found, unknown = [], []
        for raw in map(raw_text, raw_ids):
            place = self.index.get(raw)
            if place is None:
                unknown.append(raw)
            else:
                found.append(place)
        return found, unknown

    def search(self, words: str, limit: int) -> list[int]:
        """Items whose title holds these words, or whose id is them; titles that begin with them come first."""
        wanted = words.strip().casefold()
        exact = [self.index[words.strip()]] if words.strip() in self.index else []
        if not wanted:
            return exact[:limit]
        found = [place for place, title in enumerate(self.folded_titles) if wanted in title]
        found.sort(key=lambda place: (not self.folded_titles[place].startswith(wanted), self.folded_titles[place]))
        return list(dict.fromkeys([*exact, *found]))[:limit]

    def popular(self) -> NDArray[np.int64] | None:
        """Every item, the most frequent training target first; None where the counts are not known."""
        return None if self.counts is None else np.argsort(-self.counts, kind="stable")

    def save(self, path: Path) -> None:
        """Write as Parquet: ``index``, ``raw_id``, ``title`` and, where known, ``training_count``."""
        columns = {"index": pa.array(range(self.num_items), pa.int64()), "raw_id": self.raw_ids, "title": self.titles}
        if self.counts is not None:
            columns[_COUNT] = pa.array(self.counts, pa.int64())
        pq.write_table(pa.table(columns), path)

    @classmethod
    def load(cls, path: Path) -> Catalogue:
        """Read what `save` wrote; raises ``ArtefactError`` for any other file."""
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise ArtefactError.one(
                "id map", str(path), f"cannot be read ({error})", "export the student again"
            ) from None
        missing = [name for name in _COLUMNS if name not in table.column_names]
        if missing or table["index"].to_pylist() != list(range(len(table))) or not _is_whole(table):
            rule = f"must hold the columns {', '.join(_COLUMNS)}, its indices 0..V-1 in order, its texts without gaps"
            raise ArtefactError.one("id map", str(path), rule, "export the student again")
        id_map = IdMap(tuple(table["raw_id"].to_pylist()), tuple(table["title"].to_pylist()))
        counts = table[_COUNT].to_numpy() if _COUNT in table.column_names else None
        return cls(id_map, counts)


def _is_whole(table: pa.Table) -> bool:
    """Whether every item has an id and a title, and a count where there are counts."""
    counted = [_COUNT] if _COUNT in table.column_names else []
    texts = all(pa.types.is_string(table.schema.field(name).type) for name in _COLUMNS[1:])
    numbers = all(pa.types.is_integer(table.schema.field(name).type) for name in counted)
    return texts and numbers and not any(table[name].null_count for name in (*_COLUMNS[1:], *counted))


def padded(histories: Sequence[Sequence[int]], padding_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Histories of any length as ``[B, L]``, padded on the right, and their lengths ``[B]``; L is at least 1."""
    length = np.array([len(history) for history in histories], dtype=np.int64)
    return pad_right(histories, max(1, int(length.max(initial=0))), padding_id), length
