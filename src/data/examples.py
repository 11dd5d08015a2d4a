"""Training and evaluation examples: a history and the item that came next."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.core.data_utils import fingerprint
from src.core.errors import DataError, Problem
from src.core.seed import numpy_generator
from src.data.id_map import IdMap


@dataclass(frozen=True, eq=False)
class Examples:
    """N examples; item ids 0..V-1, padding id V, padding on the right.

    ``example_id`` ``[N]`` int64, unique over all splits of a dataset, is what artefacts are joined by; ``user`` ``[N]``
    int64 (-1 where the source names no users); ``history`` ``[N, L]`` int64, oldest first; ``length`` ``[N]`` int64,
    0..L; ``target`` ``[N]`` int64; ``timestamp`` ``[N]`` float64 of the target (row number where there is no clock).
    """

    example_id: NDArray[np.int64]
    user: NDArray[np.int64]
    history: NDArray[np.int64]
    length: NDArray[np.int64]
    target: NDArray[np.int64]
    timestamp: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.example_id)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies every column."""
        return fingerprint(self.example_id, self.user, self.history, self.length, self.target, self.timestamp)

    def take(self, rows: NDArray[Any]) -> Examples:
        """The examples at these row numbers (or under this mask), in that order."""
        return Examples(
            self.example_id[rows],
            self.user[rows],
            self.history[rows],
            self.length[rows],
            self.target[rows],
            self.timestamp[rows],
        )

    def check(self, num_items: int, split: str) -> list[Problem]:
        """What breaks the rules of ids, lengths and padding in this split, as problems."""
        problems = []
        if len(self) and (self.target.min() < 0 or self.target.max() >= num_items):
            bad = self.target[(self.target < 0) | (self.target >= num_items)][0]
            problems.append(Problem(f"{split}.target", int(bad), f"is outside the catalogue 0..{num_items - 1}"))
        if self.history.size and (self.history.min() < 0 or self.history.max() > num_items):
            bad = self.history[(self.history < 0) | (self.history > num_items)][0]
            rule = f"is outside 0..{num_items} (padding is {num_items})"
            problems.append(Problem(f"{split}.history", int(bad), rule))
        real = np.arange(self.history.shape[1])[None, :] < self.length[:, None]
        misplaced = ((self.history == num_items) == real).any(axis=1)
        if misplaced.any():
            row = int(misplaced.argmax())
            problems.append(
                Problem(f"{split}.history row {row}", self.history[row].tolist(), "is not padded on the right")
            )
        if len(np.unique(self.example_id)) != len(self):
            problems.append(Problem(f"{split}.example_id", len(self), "values must be unique"))
        return problems


def sample(examples: Examples, count: int, seed: int, split: str) -> Examples:
    """The seeded sample of a held-out split that a teacher is asked about, in its own order; 0, or too many: all."""
    if count == 0 or count >= len(examples):
        return examples
    rows = numpy_generator(seed, "teacher_sample", split).choice(len(examples), size=count, replace=False)
    return examples.take(np.sort(rows))


def openings(record: Path) -> list[dict[str, Any]]:
    """What a record tells of earlier openings of the test split."""
    if not record.is_file():
        return []
    return [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines() if line.strip()]


def already_open(record: Path) -> Problem:
    """The problem of a second opening."""
    first = openings(record)[0]
    rule = f"was opened for this search at {first['time']} ({first['reason']})"
    step = "a second look makes its figures less than a test: reopen_test=true does it all the same, and is logged"
    return Problem("test split", str(record), rule, step)


@dataclass(frozen=True)
class Unseen:
    """Counts of a held-out split: its targets, users and items, and how many of each never trained a model.

    An item is known when it is the target of a training example; ``users`` are None where the source names none.
    """

    targets: int
    targets_of_new_items: int
    items: int
    new_items: int
    users: int | None
    new_users: int | None

    @classmethod
    def of(cls, held_out: Examples, train: Examples) -> Unseen:
        """Of a split against the training examples."""
        items, users = np.unique(held_out.target), np.unique(held_out.user)
        named = bool(len(users)) and users[0] >= 0
        return cls(
            targets=len(held_out),
            targets_of_new_items=int((~np.isin(held_out.target, np.unique(train.target))).sum()),
            items=len(items),
            new_items=int((~np.isin(items, train.target)).sum()),
            users=len(users) if named else None,
            new_users=int((~np.isin(users, train.user)).sum()) if named else None,
        )


class SealedExamples:
    """The test split: it can be counted and fingerprinted, but read only through `open`, which leaves a record."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    @property
    def fingerprint(self) -> str:
        """Identifies the examples without showing them."""
        return self._examples.fingerprint

    def unseen(self, train: Examples) -> Unseen:
        """How many of its users and items never train a model: counts, which show no example."""
        return Unseen.of(self._examples, train)

    def open(self, reason: str, record: Path, judged: str = "", again: bool = False) -> Examples:
        """The test examples; one line with time, reason and fingerprint is appended to ``record`` first.

        ``judged`` identifies the models that will be ranked. Raises ``DataError`` when ``record`` tells of an opening
        for other models, unless ``again`` is true; the same models may be measured once more, which tells nothing new.
        """
        earlier = openings(record)
        if not again and any(line.get("judged", "") != judged for line in earlier):
            raise DataError([already_open(record)])
        record.parent.mkdir(parents=True, exist_ok=True)
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "reason": reason, "test_split": self.fingerprint}
        with record.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({**line, "judged": judged, "again": again}, ensure_ascii=False) + "\n")
        return self._examples

    def check(self, num_items: int, split: str) -> list[Problem]:
        """As `Examples.check`; shows ids only where they break a rule."""
        return self._examples.check(num_items, split)


@dataclass(frozen=True)
class Statistics:
    """What is printed about a dataset. ``users`` and ``density`` are None where a pre-split source names no users."""

    users: int | None
    items: int
    interactions: int
    density: float | None
    train: int
    validation: int
    test: int


@dataclass(frozen=True, eq=False)
class SequenceData:
    """A dataset ready for training: three splits over one catalogue."""

    name: str
    id_map: IdMap
    train: Examples
    validation: Examples
    test: SealedExamples
    statistics: Statistics
    dataset_fingerprint: str

    def __post_init__(self) -> None:
        items = self.id_map.num_items
        problems = [
            *self.train.check(items, "train"),
            *self.validation.check(items, "validation"),
            *self.test.check(items, "test"),
        ]
        if problems:
            raise DataError(problems)

    @property
    def num_items(self) -> int:
        """V, the size of the catalogue."""
        return self.id_map.num_items

    @property
    def history_length(self) -> int:
        """L, the width of a history row."""
        return int(self.train.history.shape[1])

    @cached_property
    def split_fingerprint(self) -> str:
        """Identifies the examples of all three splits."""
        return fingerprint(self.train.fingerprint, self.validation.fingerprint, self.test.fingerprint)

    @cached_property
    def item_counts(self) -> NDArray[np.int64]:
        """``[V]``: how often each item is a training target (DLLM2Rec's propensities count these only)."""
        return np.bincount(self.train.target, minlength=self.num_items)

    def fingerprints(self) -> dict[str, str]:
        """What an artefact made from this data must carry."""
        return {
            "dataset": self.dataset_fingerprint,
            "split": self.split_fingerprint,
            "id_map": self.id_map.fingerprint,
        }
