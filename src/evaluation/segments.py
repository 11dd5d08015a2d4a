"""For which examples does a model gain? NDCG@K and paired gains by segment, as a table of plain columns.

Segments are by how often the target occurs in training, by the history's length, and by whether the user is known from
training. Each interval stands for itself: of twenty that exclude zero by chance alone, one is expected at 95 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from src.core.seed import numpy_generator
from src.evaluation.paired import compare, gain, named_users, resampling_units

ALL = "all"


@dataclass(frozen=True)
class Band:
    """Whole numbers from ``low`` to ``high``, both inside; None: no upper end."""

    name: str
    low: int
    high: int | None

    def holds(self, values: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the values lie inside."""
        inside: NDArray[np.bool_] = values >= self.low
        return inside if self.high is None else inside & (values <= self.high)


#: how often a target occurs in training
FREQUENCY = (Band("never", 0, 0), Band("1-5", 1, 5), Band("6-20", 6, 20), Band("more than 20", 21, None))
#: items of a history
LENGTH = (Band("0-2", 0, 2), Band("3-5", 3, 5), Band("6-9", 6, 9), Band("10 or more", 10, None))


@dataclass(frozen=True, eq=False)
class ExampleFacts:
    """What is known about N examples before a model ranks them; all are ``[N]``.

    ``target_count``: how often the target occurs in training. ``history_length``: items of the history. ``user``: the
    owner, -1 where the source names none. ``user_in_training``: whether the owner has training examples.
    """

    target_count: NDArray[np.int64]
    history_length: NDArray[np.int64]
    user: NDArray[np.int64]
    user_in_training: NDArray[np.bool_]

    def __post_init__(self) -> None:
        shapes = {np.shape(part) for part in vars(self).values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            raise ValueError(f"facts of shapes {sorted(shapes)}: each is [N], one value an example")


def segments(facts: ExampleFacts) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Every segment as (by what, name, which examples ``[N]``). Users are no segments where the source names none."""
    yield ALL, ALL, np.ones(len(facts.user), bool)
    for by, bands, values in (
        ("target frequency", FREQUENCY, facts.target_count),
        ("history length", LENGTH, facts.history_length),
    ):
        for band in bands:
            yield by, band.name, band.holds(values)
    if named_users(facts.user):
        yield "user", "in training", facts.user_in_training
        yield "user", "new", ~facts.user_in_training


def segments_frame(
    ranks: Mapping[str, NDArray[np.int64]],
    facts: ExampleFacts,
    reference: str,
    k: int,
    seed: int,
    resamples: int = 2000,
) -> pd.DataFrame:
    """One line a segment and model.

    Columns: ``by``, ``segment``, ``examples``, ``users`` (named ones), ``model``, ``seeds``, ``ndcg_K``, ``against``,
    ``gain``, ``low``, ``high`` (95 % interval of the gain) and ``resampled`` (users, or examples where there are no two
    users). What a segment is too small for is empty: everything where it has no example, the interval where it has one.

    Args:
        ranks: 1-based ranks of the targets per model, ``[N]``, or ``[S, N]`` for trainings with S seeds. A model with
            one training is set against each seed of the others.
        facts: the same N examples, in the same order.
        reference: the model that the others' gains are over; it has none itself.
        k: the cut-off K.
        seed: decides the resamples.
        resamples: of each interval.

    Raises:
        ValueError: an unknown reference, numbers of examples or seeds that do not fit, or what is no rank.
    """
    if reference not in ranks:
        raise ValueError(f"reference {reference!r} is not among {list(ranks)}")
    own = {model: np.atleast_2d(gain(values, k)) for model, values in ranks.items()}
    seeds = max(len(scores) for scores in own.values())
    shape = (seeds, len(facts.user))
    if any(scores.shape not in (shape, (1, shape[1])) for scores in own.values()):
        raise ValueError(
            f"ranks of shapes {[s.shape for s in own.values()]}: {shape} or {(1, shape[1])} for each model"
        )
    scores = {model: np.broadcast_to(values, shape) for model, values in own.items()}
    lines = []
    for by, name, inside in segments(facts):
        user = facts.user[inside]
        part = {model: values[:, inside] for model, values in scores.items()}
        generator = numpy_generator(seed, "segments", by, name)
        gains = _gains(part, user, reference, resamples, generator)
        place = {"by": by, "segment": name, "examples": len(user), "users": named_users(user)}
        for model, values in part.items():
            mean = float(values.mean()) if len(user) else np.nan
            measured = {"model": model, "seeds": len(own[model]), f"ndcg_{k}": mean}
            lines.append({**place, **measured, **gains.get(model, _NO_GAIN)})
    return pd.DataFrame(lines)


_NO_GAIN = {"against": None, "gain": np.nan, "low": np.nan, "high": np.nan, "resampled": None}


def _gains(
    scores: Mapping[str, NDArray[np.float64]],
    user: NDArray[np.int64],
    reference: str,
    resamples: int,
    generator: np.random.Generator,
) -> dict[str, dict[str, object]]:
    """Each other model's gain over the reference with its interval, as far as the examples allow."""
    others: Sequence[str] = [model for model in scores if model != reference]
    if not others or len(user) == 0:
        return {}
    if len(user) == 1:
        return {
            model: {**_NO_GAIN, "against": reference, "gain": float((scores[model] - scores[reference]).mean())}
            for model in others
        }
    _, resampled = resampling_units(user)
    return {
        found.name: {
            "against": reference,
            "gain": found.difference,
            "low": found.low,
            "high": found.high,
            "resampled": resampled,
        }
        for found in compare(scores, user, reference, resamples, generator)
    }
