"""What a dataset is like, and what of that matters for training and comparing recommenders on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from src.data.examples import Examples, SequenceData, Statistics, UnseenCounts

_CHUNK = 100_000
_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400

#: Shares and counts from which a warning is given.
MANY_TIES, MANY_REPEATS, MANY_NEW, FEW_TARGETS, FEW_TESTS = 0.5, 0.1, 0.05, 5, 1000


@dataclass(frozen=True)
class Quartiles:
    """Least, lower quarter, middle, upper quarter and most of some values."""

    least: float
    lower: float
    middle: float
    upper: float
    most: float

    @classmethod
    def of(cls, values: NDArray[np.float64] | NDArray[np.int64]) -> Quartiles | None:
        """The quartiles of some values; None where there are none."""
        if not len(values):
            return None
        return cls(*(float(part) for part in np.quantile(values, [0, 0.25, 0.5, 0.75, 1])))


@dataclass(frozen=True)
class Description:
    """Facts of a dataset, from its training and validation examples; of the sealed test split only counts.

    ``repeated`` is the share of targets that their own history holds; ``ties`` the share that has its time in common
    with another target of its user, ``crowded`` with a target of anybody; ``lengths`` are histories as models see them
    (cut to the window); ``per_user`` and ``per_item`` count targets; ``gaps`` are seconds between a user's targets.
    What needs users is None where the source names none.
    """

    name: str
    statistics: Statistics
    repeated: float
    ties: float | None
    crowded: float | None
    lengths: Quartiles | None
    per_user: Quartiles | None
    per_item: Quartiles | None
    gaps: Quartiles | None
    never_targets: int
    validation: UnseenCounts
    test: UnseenCounts
    untitled: int
    alike: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of results on this dataset should know."""
        return tuple(_warnings(self))


def describe(data: SequenceData) -> Description:
    """The facts of a dataset."""
    train, validation = data.train, data.validation
    users = np.concatenate([train.user, validation.user])
    times = np.concatenate([train.timestamp, validation.timestamp])
    targets = np.concatenate([train.target, validation.target])
    named = data.statistics.users is not None
    counts = np.bincount(targets, minlength=data.num_items)
    titles = [title for title in data.id_map.titles if title.strip()]
    return Description(
        name=data.name,
        statistics=data.statistics,
        repeated=_share(sum(_repeated(part) for part in (train, validation)), len(targets)),
        ties=_in_common(users, times) if named else None,
        crowded=_in_common(np.zeros_like(users), times) if named else None,
        lengths=Quartiles.of(np.concatenate([train.length, validation.length])),
        per_user=Quartiles.of(np.unique(users, return_counts=True)[1]) if named else None,
        per_item=Quartiles.of(counts[counts > 0]),
        gaps=Quartiles.of(_gaps(users, times)) if named else None,
        never_targets=int((counts == 0).sum()),
        validation=UnseenCounts.of(validation, train),
        test=data.test.unseen(train),
        untitled=data.id_map.untitled,
        alike=len(titles) - len(set(titles)),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _repeated(examples: Examples) -> int:
    """How many targets stand in their own history."""
    found = 0
    for start in range(0, len(examples), _CHUNK):
        rows = examples.take(np.arange(start, min(start + _CHUNK, len(examples))))
        found += int((rows.history == rows.target[:, None]).any(axis=1).sum())
    return found


def _in_common(users: NDArray[np.int64], times: NDArray[np.float64]) -> float:
    """The share of rows with another row of the same user and time."""
    order = np.lexsort((times, users))
    same = (np.diff(users[order]) == 0) & (np.diff(times[order]) == 0)
    return _share(int((np.r_[same, False] | np.r_[False, same]).sum()), len(users))


def _gaps(users: NDArray[np.int64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    order = np.lexsort((times, users))
    gaps: NDArray[np.float64] = np.diff(times[order])[np.diff(users[order]) == 0]
    return gaps


def _warnings(facts: Description) -> Iterator[str]:
    if facts.ties is not None and facts.ties >= MANY_TIES:
        yield (
            f"{facts.ties:.0%} of all targets share user and time with another one: what came first is the file's "
            "order, so that a history says little about what came next"
        )
    elif facts.crowded is not None and facts.crowded >= MANY_TIES:
        yield (
            f"{facts.crowded:.0%} of all targets share their time with another one: times are coarse, and the "
            "temporal split cuts within one of them"
        )
    if facts.repeated >= MANY_REPEATS:
        yield (
            f"{facts.repeated:.0%} of all targets stand in their own history: with evaluation.mask_history=true these "
            "cannot be found, without it repeating the history is a strong baseline"
        )
    test = facts.test
    if _share(test.targets_of_new_items, test.targets) >= MANY_NEW:
        yield (
            f"{_share(test.targets_of_new_items, test.targets):.0%} of all test targets are items that are never a "
            "training target: a student that knows items by their id alone cannot recommend them"
        )
    if facts.per_item is not None and facts.per_item.middle < FEW_TARGETS:
        yield (
            f"half of all items are a target fewer than {facts.per_item.middle + 1:.0f} times: what is learnt about "
            "them is mostly noise (dataset.min_item_interactions drops such items)"
        )
    if test.targets < FEW_TESTS:
        yield f"the test split has {test.targets:,} targets: only large differences can be told from chance"
    if facts.untitled:
        yield f"{facts.untitled:,} items have no title: a teacher reads titles (dataset.untitled=id or drop)"
    if facts.alike:
        told = "a teacher cannot tell these apart (dataset.item_text)"
        yield f"{facts.alike:,} items have the title of another item: {told}"


def format_description(facts: Description) -> str:
    """The facts, a line each, and the warnings."""
    numbers = facts.statistics
    rows = [
        ("dataset", facts.name),
        ("users", "not named by the source" if numbers.users is None else f"{numbers.users:,}"),
        ("items", f"{numbers.items:,} ({facts.never_targets:,} never a target before the test split)"),
        ("interactions", f"{numbers.interactions:,}"),
        ("density", "unknown" if numbers.density is None else f"{numbers.density:.3%}"),
        ("examples", f"{numbers.train:,} train, {numbers.validation:,} validation, {numbers.test:,} test (sealed)"),
        ("history length", _spread(facts.lengths)),
        ("targets a user", _spread(facts.per_user)),
        ("targets an item", _spread(facts.per_item)),
        ("time between", _spread(facts.gaps, clock=True)),
        ("same user and time", _percent(facts.ties)),
        ("same time", _percent(facts.crowded)),
        ("repeated items", f"{facts.repeated:.1%} of the targets stand in their own history"),
        ("new in validation", _unseen(facts.validation)),
        ("new in test", _unseen(facts.test)),
    ]
    lines = [f"{label:<20}{value}" for label, value in rows if value]
    return "\n".join([*lines, *(f"note: {warning}" for warning in facts.warnings)])


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%} of the targets"


def _spread(values: Quartiles | None, clock: bool = False) -> str:
    if values is None:
        return ""
    shown = [_duration(v) if clock else f"{v:,.0f}" for v in (values.least, values.lower, values.middle, values.upper)]
    most = _duration(values.most) if clock else f"{values.most:,.0f}"
    return f"{shown[2]} in the middle, half of them {shown[1]} to {shown[3]}, all {shown[0]} to {most}"


def _duration(seconds: float) -> str:
    for least, unit, size in ((2 * _DAY, "days", _DAY), (2 * _HOUR, "h", _HOUR), (2 * _MINUTE, "min", _MINUTE)):
        if seconds >= least:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s"


def _unseen(counts: UnseenCounts) -> str:
    users = "" if counts.users is None else f"{_of(counts.new_users or 0, counts.users, 'users')}, "
    items = _of(counts.new_items, counts.items, "items")
    return f"{users}{items}, which are {_share(counts.targets_of_new_items, counts.targets):.1%} of the targets"


def _of(part: int, whole: int, what: str) -> str:
    return f"{part:,} of {whole:,} {what}"
