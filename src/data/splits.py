"""Which examples train, which choose, and which are kept sealed. Examples come in (timestamp, file order)."""

from __future__ import annotations

import math

import numpy as np

from src.data.examples import Examples

Split = tuple[Examples, Examples, Examples]

# 0.7 + 0.1 is a little less than 0.8 in floating point; a share must not lose a row by it.
_ROUNDING = 1e-9


def temporal_split(examples: Examples, train_share: float, validation_share: float) -> Split:
    """The first ``train_share`` of the targets in time, the next ``validation_share``, and the rest (floors).

    Args:
        examples: in time order.
        train_share: from 0 to 1.
        validation_share: from 0 to 1; both together at most 1.
    """
    first = math.floor(len(examples) * train_share + _ROUNDING)
    second = math.floor(len(examples) * (train_share + validation_share) + _ROUNDING)
    parts = (slice(first), slice(first, second), slice(second, None))  # views, not copies
    train, validation, test = (examples.split_off(rows) for rows in parts)
    return train, validation, test


def leave_one_out_split(examples: Examples) -> Split:
    """Each user's last target is test, the last but one validation, the others train.

    A user with one target is in the test split only. Other users' later interactions may be in the training split, so
    this split is not safe in time; `temporal_split` is.
    """
    by_user = np.argsort(examples.user, kind="stable")
    grouped = examples.user[by_user]
    ends = np.searchsorted(grouped, grouped, side="right")
    from_end = np.empty(len(examples), dtype=np.int64)
    from_end[by_user] = ends - 1 - np.arange(len(grouped))
    return examples.split_off(from_end >= 2), examples.split_off(from_end == 1), examples.split_off(from_end == 0)
