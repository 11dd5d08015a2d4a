"""From a log of interactions to examples: each user's history in time order, and the item that came next."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from src.data.examples import Examples, Histories
from src.data.interactions import Interactions


def time_order(interactions: Interactions) -> NDArray[np.int64]:
    """Row numbers sorted by (timestamp, file order)."""
    return np.argsort(interactions.timestamps, kind="stable")


def build_examples(interactions: Interactions, window: int, min_history: int) -> Examples:
    """Every target with at least ``min_history`` earlier items of its user, in (timestamp, file order).

    A history is all of the user's items before the target, of which a model sees the last ``window``. ``example_id`` is
    the target's place in the time order of all interactions.

    Args:
        interactions: in any order.
        window: L.
        min_history: least items of a history, at least 1.
    """
    order = time_order(interactions)
    users, items = interactions.users[order], interactions.items[order]
    by_user = np.argsort(users, kind="stable")
    grouped = users[by_user]
    starts = np.flatnonzero(np.r_[True, grouped[1:] != grouped[:-1]]) if len(grouped) else np.zeros(0, np.int64)
    sizes = np.diff(np.r_[starts, len(grouped)])
    del grouped  # of many million rows each array counts, here and below
    # by_user is a permutation, so its inverse says where a row of the time order stands among its user's
    place, earlier = np.empty_like(by_user), np.empty_like(by_user)
    place[by_user] = np.arange(len(by_user))
    earlier[by_user] = np.arange(len(by_user)) - np.repeat(starts, sizes)
    rows = np.flatnonzero(earlier >= min_history)
    return Examples(
        example_id=rows,
        user=users[rows],
        past=Histories(items[by_user].astype(np.int32), place[rows], earlier[rows], interactions.id_map.padding_id),
        window=window,
        target=items[rows],
        timestamp=interactions.timestamps[order[rows]],
    )
