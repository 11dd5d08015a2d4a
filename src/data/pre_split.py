"""Sources that come with their splits: rows keep their numbers, so that an example can be found in the file again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from src.core.data_utils import fingerprint
from src.core.errors import DataError
from src.data.examples import Examples, Histories
from src.data.id_map import IdMap
from src.data.sequence_table import SequenceTable

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class PreSplit:
    """Three tables over one catalogue, every row as in the file; keys of ``tables`` are `SPLITS`.

    Raises ``DataError`` for ids outside the catalogue and for padding that is not V.
    """

    name: str
    id_map: IdMap
    tables: Mapping[str, SequenceTable]

    def __post_init__(self) -> None:
        problems = [problem for table in self.tables.values() for problem in table.check(self.id_map.num_items)]
        if problems:
            raise DataError(problems)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the content of all rows, and the catalogue."""
        columns = [column for split in SPLITS for column in self._columns(split)]
        return fingerprint(*columns, self.id_map.fingerprint)

    def _columns(self, split: str) -> Iterator[NDArray[np.int64]]:
        table = self.tables[split]
        yield np.where(table.real, table.cells, self.id_map.padding_id)
        yield table.length
        yield table.target

    def first_example_id(self, split: str) -> int:
        """``example_id`` of the split's row 0: rows are numbered through train, validation and test."""
        return sum(len(self.tables[name]) for name in SPLITS[: SPLITS.index(split)])

    def examples(self, split: str, window: int, min_history: int) -> Examples:
        """The rows with at least ``min_history`` items of history, each cut to its last ``window`` items.

        ``example_id`` is `first_example_id` + the row's number in the file; there are no users and no clock.

        Args:
            split: train, validation or test.
            window: L.
            min_history: least items of a history.
        """
        table = self.tables[split]
        rows = np.flatnonzero(table.length >= min_history)
        example_id = self.first_example_id(split) + rows
        return Examples(
            example_id=example_id,
            user=np.full(len(rows), -1, dtype=np.int64),
            past=Histories.of_rows(table.cells[rows], table.length[rows], self.id_map.padding_id),
            window=window,
            target=table.target[rows],
            timestamp=example_id.astype(np.float64),
        )
