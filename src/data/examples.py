"""Training and evaluation examples: a history and the item that came next."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass as document

from src.core.data_utils import fingerprint
from src.core.documents import PARTIAL, append_json_line, read_json_lines
from src.core.errors import DataError, Problem
from src.core.seed import numpy_generator
from src.data.id_map import IdMap


@dataclass(frozen=True, eq=False)
class Histories:
    """N histories as views into one array of items: no window is copied before somebody reads it.

    ``items`` ``[T]`` int32, each owner's items in time order, one owner after the other; ``end`` ``[N]`` int64, where a
    history ends (its last item stands just before); ``earlier`` ``[N]`` int64, how many items the owner has before that
    place. ``padding_id`` fills the places behind a history.
    """

    items: NDArray[np.int32]
    end: NDArray[np.int64]
    earlier: NDArray[np.int64]
    padding_id: int

    @classmethod
    def of_rows(cls, history: NDArray[Any], length: NDArray[Any], padding_id: int) -> Histories:
        """Histories from a table ``[N, L]``, left-aligned, of which each row's first ``length`` cells are real.

        Args:
            history: ``[N, L]`` item ids, oldest first.
            length: real items of each row, ``[N]``, 0 to L.
            padding_id: V.
        """
        real = np.arange(history.shape[1])[None, :] < length[:, None]
        counts = np.asarray(length, np.int64)
        return cls(history[real].astype(np.int32), np.cumsum(counts), counts, padding_id)

    def take(self, rows: NDArray[Any] | slice) -> Histories:
        """The histories at these row numbers (or under this mask, or in this slice), over the same items."""
        return Histories(self.items, self.end[rows], self.earlier[rows], self.padding_id)

    def compact(self) -> Histories:
        """The same histories over the items that one of them holds: a split keeps its own past, and nothing later."""
        first = self.end - self.earlier
        # what `np.unique` would give, without sorting: each owner's items begin somewhere in 0..T
        begins = np.zeros(len(self.items) + 1, bool)
        begins[first] = True
        owners, owner = np.flatnonzero(begins), (np.cumsum(begins) - 1)[first]
        last = np.zeros(len(owners), np.int64)
        np.maximum.at(last, owner, self.end)
        sizes = last - owners
        moved = np.cumsum(sizes) - sizes
        source = np.repeat(owners - moved, sizes) + np.arange(int(sizes.sum()))
        return Histories(self.items[source], self.end - first + moved[owner], self.earlier, self.padding_id)

    def dense(self, window: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The last ``window`` items of each history, left-aligned ``[N, window]``, and how many these are ``[N]``."""
        length = np.minimum(self.earlier, window)
        place = np.arange(window)
        real = place < length[:, None]
        source = np.where(real, (self.end - length)[:, None] + place, 0)
        items = self.items if len(self.items) else np.zeros(1, np.int32)
        return np.where(real, items[source], self.padding_id).astype(np.int64), length


@dataclass(frozen=True, eq=False)
class Examples:
    """N examples; item ids 0..V-1, padding id V, padding on the right.

    ``example_id`` ``[N]`` int64, unique over all splits of a dataset, is what artefacts are joined by; ``user`` ``[N]``
    int64 (-1 where the source names no users); ``past``: each example's whole history; ``window``: L, how many of its
    last items a model sees unless it asks for more; ``target`` ``[N]`` int64; ``timestamp`` ``[N]`` float64 of the
    target (row number where there is no clock). ``known_fingerprint``: what `fingerprint` gave when these very examples
    were written to a file whose checksum was verified; "" otherwise.
    """

    example_id: NDArray[np.int64]
    user: NDArray[np.int64]
    past: Histories
    window: int
    target: NDArray[np.int64]
    timestamp: NDArray[np.float64]
    known_fingerprint: str = field(default="", repr=False)

    @classmethod
    def of_rows(
        cls,
        example_id: NDArray[np.int64],
        user: NDArray[np.int64],
        history: NDArray[np.int64],
        length: NDArray[np.int64],
        target: NDArray[np.int64],
        timestamp: NDArray[np.float64],
    ) -> Examples:
        """Examples from histories as a table ``[N, L]``, padded on the right with V, and their lengths ``[N]``.

        Args:
            example_id: ``[N]``, unique over all splits.
            user: ``[N]``; −1 where there are none.
            history: ``[N, L]`` item ids, oldest first.
            length: ``[N]``, 0 to L.
            target: ``[N]``.
            timestamp: ``[N]``, of the target.
        """
        behind = np.arange(history.shape[1])[None, :] >= length[:, None]
        padding_id = int(history[behind].max()) if behind.any() else int(np.max(history, initial=0)) + 1
        past = Histories.of_rows(history, length, padding_id)
        return cls(example_id, user, past, history.shape[1], target, timestamp)

    def __len__(self) -> int:
        return len(self.example_id)

    @cached_property
    def _dense(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.past.dense(self.window)

    @property
    def history(self) -> NDArray[np.int64]:
        """``[N, L]``: the last L items of each history, oldest first."""
        return self._dense[0]

    @property
    def length(self) -> NDArray[np.int64]:
        """``[N]``: how many of them there are, 0..L."""
        return self._dense[1]

    @cached_property
    def fingerprint(self) -> str:
        """Identifies every column and every whole history."""
        if self.known_fingerprint:
            return self.known_fingerprint
        past = self.past.compact()
        return fingerprint(
            self.example_id, self.user, past.items, past.end, past.earlier, self.window, self.target, self.timestamp
        )

    def take(self, rows: NDArray[Any] | slice) -> Examples:
        """The examples at these row numbers (or under this mask, or in this slice), in that order."""
        return Examples(
            self.example_id[rows],
            self.user[rows],
            self.past.take(rows),
            self.window,
            self.target[rows],
            self.timestamp[rows],
        )

    def columns(self) -> tuple[dict[str, NDArray[Any]], NDArray[np.int32], dict[str, Any]]:
        """What a file holds: columns ``[N]``, the items of the histories ``[T]``, and what is told of them."""
        named = {
            "example_id": self.example_id,
            "user": self.user,
            "end": self.past.end,
            "earlier": self.past.earlier,
            "target": self.target,
            "timestamp": self.timestamp,
        }
        facts = {"window": self.window, "padding_id": self.past.padding_id, "fingerprint": self.fingerprint}
        return named, self.past.items, facts

    def split_off(self, rows: NDArray[Any] | slice) -> Examples:
        """As `take`, for a split: nothing that happened after its last example comes along."""
        taken = self.take(rows)
        return replace(taken, past=taken.past.compact())

    def check(self, num_items: int, split: str) -> list[Problem]:
        """What breaks the rules of ids, lengths and padding in this split, as problems."""
        problems = []
        if len(self) and (self.target.min() < 0 or self.target.max() >= num_items):
            bad = self.target[(self.target < 0) | (self.target >= num_items)][0]
            problems.append(Problem(f"{split}.target", int(bad), f"is outside the catalogue 0..{num_items - 1}"))
        items = self.past.items
        if items.size and (items.min() < 0 or items.max() >= num_items):
            bad = items[(items < 0) | (items >= num_items)][0]
            problems.append(
                Problem(f"{split}.history", int(bad), f"is outside 0..{num_items - 1} (padding is {num_items})")
            )
        if self.past.padding_id != num_items:
            problems.append(
                Problem(f"{split}.history", self.past.padding_id, f"is padded with this, not with {num_items}")
            )
        rising = bool((self.example_id[1:] > self.example_id[:-1]).all())  # as a rule: then nothing must be sorted
        if not rising and len(np.unique(self.example_id)) != len(self):
            problems.append(Problem(f"{split}.example_id", len(self), "values must be unique"))
        return problems


def sample(examples: Examples, count: int, seed: int, split: str) -> Examples:
    """The seeded sample of a held-out split that a teacher is asked about, in its own order; 0, or too many: all.

    Args:
        examples: the split.
        count: how many are wanted.
        seed: decides which.
        split: its name, which draws for itself.
    """
    if count == 0 or count >= len(examples):
        return examples
    rows = numpy_generator(seed, "teacher_sample", split).choice(len(examples), size=count, replace=False)
    return examples.take(np.sort(rows))


@document(frozen=True, config=PARTIAL)
class _Opening:
    """A line of the record of openings."""

    time: str
    reason: str
    test_split: str = ""
    judged: str = ""
    again: bool = False


def openings(record: Path) -> list[dict[str, Any]]:
    """What a record tells of earlier openings of the test split."""
    step = "whether the test split was opened can no longer be told: restore the record, or start a new search"
    return [asdict(line) for line in read_json_lines(record, _Opening, step)]


def already_open(record: Path) -> Problem:
    """The problem of a second opening."""
    first = openings(record)[0]
    rule = f"was opened for this search at {first['time']} ({first['reason']})"
    step = "a second look makes its figures less than a test: reopen_test=true does it all the same, and is logged"
    return Problem("test split", str(record), rule, step)


@dataclass(frozen=True)
class UnseenCounts:
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
    def of(cls, held_out: Examples, train: Examples) -> UnseenCounts:
        """Count a split against the training examples."""
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

    def columns(self) -> tuple[dict[str, NDArray[Any]], NDArray[np.int32], dict[str, Any]]:
        """As `Examples.columns`: for a file, which is as sealed as the source that it was read from."""
        return self._examples.columns()

    def unseen(self, train: Examples) -> UnseenCounts:
        """How many of its users and items never train a model: counts, which show no example."""
        return UnseenCounts.of(self._examples, train)

    def open(self, reason: str, record: Path, judged: str = "", again: bool = False) -> Examples:
        """The test examples; one line with time, reason and fingerprint is appended to ``record`` first.

        ``judged`` identifies the models that will be ranked. Raises ``DataError`` when ``record`` tells of an opening
        for other models, unless ``again`` is true; the same models may be measured once more, which tells nothing new.

        Args:
            reason: why, in a few words.
            record: the file of openings.
            judged: a fingerprint of what will be ranked.
            again: whether other models may be ranked after the first ones.
        """
        earlier = openings(record)
        if not again and any(line.get("judged", "") != judged for line in earlier):
            raise DataError([already_open(record)])
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "reason": reason, "test_split": self.fingerprint}
        append_json_line(record, {**line, "judged": judged, "again": again})
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
        return self.train.window

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
