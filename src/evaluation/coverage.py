"""Metrics of what is recommended, whatever the target: pure functions of top-K lists.

A metric takes the lists ``[N, K]`` of item ids and how often each item of the catalogue occurs in training ``[V]``, and
gives one number. A function below `list_metric` is a metric of every table under its own name.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: an item that occurs at most so often in training is rare
RARE = 5

#: what a metric of lists is: ``metric(lists [N, K], training_count [V])``
ListMetric = Callable[[NDArray[np.int64], NDArray[np.int64]], float]
_METRICS: dict[str, ListMetric] = {}


def list_metric(metric: ListMetric) -> ListMetric:
    """Make a function a metric of every table, as ``<its name>_<K>``."""
    _METRICS[metric.__name__] = metric
    return metric


@list_metric
def coverage(lists: NDArray[np.int64], training_count: NDArray[np.int64]) -> float:
    """Share of the catalogue that is in at least one list."""
    return len(np.unique(lists)) / len(training_count)


@list_metric
def rare_share(lists: NDArray[np.int64], training_count: NDArray[np.int64]) -> float:
    """Share of the lists' places that hold an item which occurs at most `RARE` times in training, or never."""
    return float((training_count[lists] <= RARE).mean())


def summarise_lists(lists: ArrayLike, training_count: ArrayLike) -> dict[str, float]:
    """Every metric of the lists, as ``coverage_20`` and so on.

    Args:
        lists: ``[N, K]`` ids 0..V-1 of the items recommended for each example.
        training_count: ``[V]`` how often each item occurs in training.

    Raises:
        ValueError: there are no lists, or they hold what is no item of the catalogue.
    """
    top, counts = np.asarray(lists), np.asarray(training_count)
    if top.ndim != 2 or top.size == 0 or top.dtype.kind not in "iu":
        raise ValueError(f"lists of shape {top.shape} and type {top.dtype}: [N, K] whole numbers, at least one")
    if top.min() < 0 or top.max() >= len(counts):
        raise ValueError(f"lists hold ids {top.min()} to {top.max()}: the catalogue's are 0 to {len(counts) - 1}")
    return {f"{name}_{top.shape[1]}": metric(top, counts) for name, metric in _METRICS.items()}
