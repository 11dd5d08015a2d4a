"""Did an arm help? Paired comparisons on the same examples, bootstrapped over users and seeds.

Scores are ``[S, N]``: S trainings of one configuration that differ in nothing but the seed, and N test examples. The
same seed gives every arm the same initialisation and order of batches, so arms are paired by example and by seed.

A few users own most test examples, and examples of one user are alike, so whole users are drawn with replacement, not
examples (cluster bootstrap: Field & Welsh, "Bootstrapping clustered data", JRSS B 2007). Seeds are drawn with
replacement beside them, crossed with the users (pigeonhole bootstrap: Owen, Annals of Applied Statistics 2007). A
resample's statistic is the ratio estimator: the sum of what was drawn over the number of examples drawn. Intervals are
percentiles of the resamples (Efron, Annals of Statistics 1979); p is corrected for several comparisons by Holm
(Scandinavian Journal of Statistics 1979), intervals by Bonferroni.

Five seeds are few: all five differences of an arm that does nothing have one sign in 1 of 16 searches, and then so has
every resample. So a resample's departure from equal weights of the seeds is stretched by √(S / χ²) with one draw of χ²
with S - 1 degrees of freedom, which turns the seeds' share into Student's t (Hesterberg's narrowness bias, "What
teachers should know about the bootstrap", The American Statistician 2015).

Where the source names no users, or all examples are one user's, examples are drawn instead: they then count as
independent of each other, which the answer says (``resampled``).

What it cannot know: each arm's configuration is taken as given, so the luck of its search is in no interval. What a
seed does to single users counts up to three times (Owen 2007), which is the safe side. Where a handful of users own
most examples no bootstrap is exact: intervals are then somewhat too narrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from src.core.errors import DataError
from src.core.metrics import ndcg
from src.core.seed import numpy_generator

Verdict = Literal["helped", "hurt", "cannot be told"]
#: what is drawn with replacement beside the seeds
Resampled = Literal["users", "examples"]

_CELLS = 2**21  # user counts in memory at once: three arrays of 16 MiB
_RESAMPLES = 2000  # of an interval that only informs
_ROUNDING = 1e-12  # a resampled mean this small beside the largest user's sum is rounding: a tie with zero


def gain(ranks: ArrayLike, k: int) -> NDArray[np.float64]:
    """NDCG@k of one target an example, 1[rank ≤ k] / log2(rank + 1), from 1-based ranks of any shape.

    Raises ``ValueError`` for a rank below 1, for ranks that are not integers and for k below 1.
    """
    found = np.array(ranks)
    if found.dtype.kind not in "iu" or (found < 1).any():
        raise ValueError("ranks are integers from 1 upwards")
    if k < 1:
        raise ValueError(f"k = {k}: at least 1")
    return np.asarray(ndcg(torch.from_numpy(found.astype(np.int64)), k).numpy(), dtype=np.float64)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given: m·p₍₁₎, (m - 1)·p₍₂₎, …, never decreasing and at most 1."""
    order = sorted(range(len(p)), key=lambda index: p[index])
    adjusted, largest = [0.0] * len(p), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - place) * p[index]))
        adjusted[index] = largest
    return adjusted


@dataclass(frozen=True)
class PairedComparison:
    """One arm against the reference arm; plain numbers, ready for JSON.

    ``mean`` and ``mean_against`` are means over seeds and examples, ``difference`` is theirs and ``relative`` that over
    ``mean_against`` (None where it is 0). ``low`` to ``high`` is the interval of the difference at ``level``,
    ``low_all`` to ``high_all`` the wider one that holds for all comparisons together. ``p`` is two-sided, at least
    2 / (resamples + 1); ``p_corrected`` is Holm's. ``users`` are those that the source names; ``resampled`` says
    whether they were drawn, or examples because there are not two of them.
    """

    name: str
    against: str
    metric: str
    mean: float
    mean_against: float
    difference: float
    low: float
    high: float
    low_all: float
    high_all: float
    relative: float | None
    p: float
    p_corrected: float
    verdict: Verdict
    level: float
    users: int
    examples: int
    seeds: int
    resamples: int
    resampled: Resampled = "users"

    def sentence(self) -> str:
        """The answer in one plain English sentence."""
        told = self.verdict != "cannot be told"
        answer = f"{self.name} {self.verdict}" if told else f"it cannot be told whether {self.name} helped"
        values = f"{self.metric} {self.mean:.4f} against {self.mean_against:.4f}"
        relative = "" if self.relative is None else f"{100 * self.relative:+z.1f} %, "
        interval = f"{100 * self.level:g} % interval {self.low:+z.4f} to {self.high:+z.4f}"
        p = f"{self.p_corrected:.3g}" if self.p_corrected >= 1e-4 else "below 0.0001"
        seeds = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"
        drawn = f"{self.users} users" if self.resampled == "users" else f"{self.examples} examples"
        return f"{answer}: {values} ({relative}{interval}, corrected p {p}, {seeds}, {drawn})."


def compare(
    scores: Mapping[str, NDArray[np.float64]],
    user: NDArray,
    reference: str,
    resamples: int,
    generator: np.random.Generator,
    level: float = 0.95,
    metric: str = "NDCG",
    stretch_seeds: bool = True,
) -> list[PairedComparison]:
    """Every other arm against the reference, in the mapping's order: one family, on the same resamples.

    An arm helped or hurt when its corrected p is below 1 - ``level`` and its interval excludes zero;
    p ≥ 2 / (``resamples`` + 1), so C comparisons need over 2·C / (1 - ``level``) resamples.

    Args:
        scores: ``[S, N]`` per arm, for the same seeds and examples in the same order. One seed leaves only users to
            resample.
        user: ``[N]`` each example's owner, -1 where the source names none. Where there are no two users, examples are
            resampled.
        reference: the arm that the others are compared with.
        resamples: how many are drawn.
        generator: decides the resamples.
        level: of the intervals.
        metric: the scores' name for the sentences.
        stretch_seeds: False is the plain bootstrap over seeds.

    Raises:
        ValueError: an unknown reference, no other arm, shapes that differ, no examples or seeds, and numbers that are
            not finite.
        DataError: a single example.
    """
    if reference not in scores:
        raise ValueError(f"reference arm {reference!r} is not among {list(scores)}")
    names = [name for name in scores if name != reference]
    if not names:
        raise ValueError(f"{reference!r} is the only arm: nothing to compare with it")
    _check(scores, user, resamples, level)
    base = np.asarray(scores[reference], np.float64)
    paired = np.stack([scores[name] - base for name in names])
    units, resampled = resampling_units(user)
    drawn, noise = _resampled_means(paired, units, resamples, generator, stretch_seeds)
    tail, tail_all = (1 - level) / 2, (1 - level) / 2 / len(names)
    low, high, low_all, high_all = np.quantile(drawn, (tail, 1 - tail, tail_all, 1 - tail_all), axis=0)
    p = [_two_sided_p(column, noise) for column in drawn.T]
    corrected = holm(p)
    difference, against = paired.mean(axis=(1, 2)), float(base.mean())
    return [
        PairedComparison(
            name=name,
            against=reference,
            metric=metric,
            mean=float(np.mean(scores[name], dtype=np.float64)),
            mean_against=against,
            difference=float(difference[c]),
            low=float(low[c]),
            high=float(high[c]),
            low_all=float(low_all[c]),
            high_all=float(high_all[c]),
            relative=float(difference[c]) / against if against else None,
            p=p[c],
            p_corrected=corrected[c],
            verdict=_verdict(low[c], high[c], corrected[c], level),
            level=level,
            users=named_users(user),
            examples=base.shape[1],
            seeds=base.shape[0],
            resamples=resamples,
            resampled=resampled,
        )
        for c, name in enumerate(names)
    ]


def mean_interval(
    scores: NDArray[np.float64],
    user: NDArray,
    resamples: int,
    generator: np.random.Generator,
    level: float = 0.95,
    stretch_seeds: bool = True,
) -> tuple[float, float, float]:
    """Mean of one arm's scores ``[S, N]`` and its interval (low, high); raises as `compare`.

    Two arms whose intervals overlap may still differ beyond doubt: only `compare` knows that they are paired.

    Args:
        scores: of each seed and example.
        user: whose example each one is, ``[N]``.
        resamples: of the bootstrap.
        generator: decides which are drawn.
        level: the interval's.
        stretch_seeds: whether the seeds' share is stretched to Student's t.
    """
    _check({"scores": scores}, user, resamples, level)
    units, _ = resampling_units(user)
    drawn, _ = _resampled_means(np.asarray(scores, np.float64)[None], units, resamples, generator, stretch_seeds)
    low, high = np.quantile(drawn[:, 0], ((1 - level) / 2, (1 + level) / 2))
    return float(np.mean(scores, dtype=np.float64)), float(low), float(high)


def user_interval(values: NDArray[np.float64], user: NDArray, seed: int) -> tuple[float, float]:
    """95 % interval of the mean of ``values`` ``[n]``, whole users resampled, or examples as in `compare`.

    Args:
        values: one an example, ``[n]``.
        user: whose example each one is, ``[n]``.
        seed: decides which are drawn.
    """
    if len(values) == 1:
        return float(values[0]), float(values[0])
    generator = numpy_generator(seed, "user_interval")
    _, low, high = mean_interval(values[None], user, _RESAMPLES, generator, stretch_seeds=False)
    return low, high


def named_users(user: NDArray) -> int:
    """How many users own these examples ``[N]``; the source names none where the id is -1."""
    return len(np.unique(user[user >= 0]))


def resampling_units(user: NDArray) -> tuple[NDArray, Resampled]:
    """The owner ``[N]`` of each example in a resample, and what owners are: users, or each example its own."""
    if len(np.unique(user)) > 1:
        return user, "users"
    return np.arange(len(user)), "examples"


def _resampled_means(
    values: NDArray[np.float64], user: NDArray, resamples: int, generator: np.random.Generator, stretch_seeds: bool
) -> tuple[NDArray[np.float64], float]:
    """Means of ``[A, S, N]`` over resampled seeds and users, ``[resamples, A]``, and the size of their rounding."""
    arms, seeds, _ = values.shape
    _, owner, sizes = np.unique(user, return_inverse=True, return_counts=True)
    rows = values.reshape(arms * seeds, -1)
    sums = np.stack([np.bincount(owner, weights=row, minlength=len(sizes)) for row in rows], axis=1)  # [U, A·S]
    seed_weights = _seed_weights(generator, resamples, seeds, stretch_seeds)
    blocks = []
    for rows_of_block, user_counts in _user_counts(generator, resamples, len(sizes)):
        totals = (user_counts @ sums).reshape(-1, arms, seeds)
        blocks.append(np.einsum("ras,rs->ra", totals, seed_weights[rows_of_block]) / (user_counts @ sizes)[:, None])
    return np.concatenate(blocks), _ROUNDING * float(np.abs(sums).max() / sizes.mean())


def _seed_weights(generator: np.random.Generator, resamples: int, seeds: int, stretch: bool) -> NDArray[np.float64]:
    """Weight of each seed in each resample, ``[resamples, S]``; rows sum to 1, stretched weights may be negative."""
    departure = _counts(generator, resamples, seeds) / seeds - 1 / seeds
    if stretch and seeds > 1:
        departure *= np.sqrt(seeds / generator.chisquare(seeds - 1, size=(resamples, 1)))
    return 1 / seeds + departure


def _user_counts(generator: np.random.Generator, resamples: int, users: int) -> Iterator[tuple[slice, NDArray]]:
    """How often each user is drawn, in blocks of resamples that fit into memory."""
    block = max(1, _CELLS // users)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        yield slice(start, start + size), _counts(generator, size, users)


def _counts(generator: np.random.Generator, resamples: int, n: int) -> NDArray[np.float64]:
    """Multinomial counts ``[resamples, n]`` of n draws with replacement from n."""
    draws = generator.integers(0, n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(draws.ravel(), minlength=resamples * n).reshape(resamples, n).astype(np.float64)


def _two_sided_p(drawn: NDArray[np.float64], noise: float) -> float:
    """Bootstrap p: twice the smaller share of resamples on one side of zero or at it, the data counted as one more."""
    beyond = min(int((drawn <= noise).sum()), int((drawn >= -noise).sum()))
    return min(1.0, 2 * (beyond + 1) / (len(drawn) + 1))


def _verdict(low: float, high: float, p_corrected: float, level: float) -> Verdict:
    if p_corrected >= 1 - level or low <= 0 <= high:
        return "cannot be told"
    return "helped" if low > 0 else "hurt"


def _check(scores: Mapping[str, NDArray[np.float64]], user: NDArray, resamples: int, level: float) -> None:
    """Raise for input that has no answer."""
    shapes = {name: np.shape(values) for name, values in scores.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"arms of different shapes: {shapes}; each is [seeds, examples] on the same examples")
    shape = next(iter(shapes.values()))
    if len(shape) != 2 or 0 in shape or np.shape(user) != shape[1:]:
        raise ValueError(f"scores {shape}, user {np.shape(user)}: [S, N] and [N] with at least one seed and example")
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: {int((~np.isfinite(values)).sum())} of {np.size(values)} scores are not finite")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"resamples = {resamples}, level = {level}: at least 1, and inside (0, 1)")
    if len(user) < 2:
        rule = "users or examples are resampled, so an interval needs at least two of them"
        raise DataError.one("test examples", len(user), rule, "evaluate on a larger test split")
