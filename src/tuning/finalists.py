"""The winner of a search, chosen among its best trials by their mean over other seeds.

The best of many validation values owes a part to its seed's luck. So the best few configurations are trained again on
seeds that had no part in the search, and the best mean wins; what is published is the winner's own trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from src.core.logging import get_logger
from src.tuning.dispatch import Search
from src.tuning.search_space import CategoricalParameter, IntParameter, SearchSpace, Value

_log = get_logger(__name__)

TRIAL, SEED = "trial", "seed"
#: the key that a seed is put under: data, prior, teacher and labels stay those of the run's own
STUDENT_SEED = "student_seed"


@dataclass(frozen=True)
class Finalist:
    """A trial of the search and its values on the seeds that it was trained on again."""

    number: int
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return float(np.mean(self.values))


def has_finalists(space: SearchSpace, count: int) -> bool:
    """Whether a search's best ``count`` trials are trained again: not where there is no single best one."""
    return count > 1 and len(space.objectives) == 1 and space.stage != "teacher"


def finalists_of(search: Search, count: int) -> list[FrozenTrial]:
    """The trials that are trained again: none where there is nothing to choose."""
    if not has_finalists(search.record.space, count):
        return []
    best = search.record.ranked()[:count]
    return best if len(best) > 1 else []


def finalist_space(search: Search, finalists: Sequence[FrozenTrial], seed: int, seeds: int) -> SearchSpace:
    """Every finalist on every seed; never on the one that it was chosen with.

    Args:
        search: whose trials the finalists are.
        finalists: the trials that are trained again.
        seed: the one that they were chosen with.
        seeds: how many others there are.
    """
    space = search.record.space
    return SearchSpace(
        space.stage,
        space.objectives,
        {
            TRIAL: CategoricalParameter(type="categorical", choices=[trial.number for trial in finalists]),
            SEED: IntParameter(type="int", low=seed + 1, high=seed + seeds),
        },
    )


def finalist_values(search: Search, trial: FrozenTrial) -> dict[str, Value]:
    """The configuration keys of a finalist's training on another seed."""
    chosen = search.record.trials()[int(trial.params[TRIAL])]
    return {**search.values(chosen), STUDENT_SEED: trial.params[SEED]}


def rank_finalists(search: Search, retrained: Search, finalists: Sequence[FrozenTrial]) -> list[Finalist]:
    """The finalists, the best mean first, and the earlier trial where two means are equal.

    One of whose trainings some failed is left out, unless all are.

    Args:
        search: says which way the metric is better.
        retrained: the finalists' trainings on other seeds.
        finalists: the trials that were trained again.
    """
    values: dict[int, list[float]] = {trial.number: [] for trial in finalists}
    failed: set[int] = set()
    for trial in retrained.record.trials():
        if trial.values is None:
            failed.add(int(trial.params[TRIAL]))
        else:
            values[int(trial.params[TRIAL])].append(float(trial.values[0]))
    if failed:
        _log.warning("trials %s could not be trained on every seed: they are not chosen", sorted(failed))
    sign = -1.0 if search.record.space.objectives[search.record.space.metric] == "maximize" else 1.0
    found = [Finalist(number, tuple(own)) for number, own in values.items() if number not in failed and own]
    return sorted(found, key=lambda finalist: (sign * finalist.mean, finalist.number))


def finalist_lines(finalists: Sequence[Finalist]) -> list[Mapping[str, Any]]:
    """What the manifest says of each finalist: its trial, its values and their mean."""
    return [{"trial": one.number, "values": list(one.values), "mean": one.mean} for one in finalists]
