"""The one typed table that every interaction log becomes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from src.core.data_utils import fingerprint
from src.core.errors import DataError, Problem
from src.data.id_map import IdMap


@dataclass(frozen=True, eq=False)
class Interactions:
    """N interactions in file order.

    ``users`` ``[N]`` int64 indices 0..U-1; ``items`` ``[N]`` int64 indices 0..V-1; ``timestamps`` ``[N]`` float64 in
    seconds (any monotone clock will do); ``ratings`` ``[N]`` float32, or None where the source has none.
    """

    name: str
    users: NDArray[np.int64]
    items: NDArray[np.int64]
    timestamps: NDArray[np.float64]
    ratings: NDArray[np.float32] | None
    id_map: IdMap

    def __post_init__(self) -> None:
        columns = {"users": self.users, "items": self.items, "timestamps": self.timestamps, "ratings": self.ratings}
        problems = [
            Problem(name, len(column), f"must have {len(self.users)} rows like users")
            for name, column in columns.items()
            if column is not None and len(column) != len(self.users)
        ]
        if len(self.items) and not (self.items.min() >= 0 and self.items.max() < self.id_map.num_items):
            outside = self.items[(self.items < 0) | (self.items >= self.id_map.num_items)]
            problems.append(
                Problem("item", int(outside[0]), f"is outside the catalogue 0..{self.id_map.num_items - 1}")
            )
        if not np.isfinite(self.timestamps).all():
            problems.append(Problem("timestamps", "NaN or infinite", "must be finite numbers"))
        if problems:
            raise DataError(problems)

    @property
    def num_users(self) -> int:
        """Users with at least one interaction."""
        return len(np.unique(self.users))

    @cached_property
    def fingerprint(self) -> str:
        """Identifies every interaction and the catalogue, not the file's name or time."""
        return fingerprint(self.users, self.items, self.timestamps, self.ratings, self.id_map.fingerprint)

    @property
    def density(self) -> float:
        """Interactions over users × items."""
        cells = self.num_users * self.id_map.num_items
        return len(self.users) / cells if cells else 0.0
