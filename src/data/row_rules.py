"""Rules about rows and items that a user chooses, each with a line that counts what it touched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from src.core.errors import ConfigError, DataError
from src.core.logging import get_logger
from src.data.id_map import IdMap
from src.data.interactions import Interactions
from src.data.settings import DatasetSettings

_log = get_logger(__name__)

_SHOWN = 5

#: The settings that these rules read, beside ``untitled``, which ready-made splits obey as well.
READS = frozenset({"min_rating", "duplicates", "min_user_interactions", "min_item_interactions"})


def apply_rules(log: Interactions, settings: DatasetSettings) -> Interactions:
    """The log under the rules, in this order, over a catalogue of the items that are left.

    Ratings below ``min_rating``; duplicates; items without a title; users and items with too few interactions; items
    that nobody met.
    """
    log = _at_least(log, settings.min_rating)
    if settings.duplicates == "drop":
        log = _first_of_each(log)
    log = _only_used_items(log)
    if settings.untitled == "drop":
        log = _only_used_items(_titled(log))
    log = _only_used_items(_core(log, settings.min_user_interactions, settings.min_item_interactions))
    if settings.untitled == "refuse":
        _refuse_untitled(log.id_map)
    return log


def check_untitled(id_map: IdMap, settings: DatasetSettings) -> None:
    """What ``untitled`` means for a source whose rows are numbered: items cannot be dropped from it."""
    if settings.untitled == "drop":
        rule = "items of a ready-made split cannot be dropped: its rows and ids are numbered"
        raise ConfigError.one("dataset.untitled", "drop", rule, "use dataset.untitled=id, or add the titles")
    if settings.untitled == "refuse":
        _refuse_untitled(id_map)


def _refuse_untitled(id_map: IdMap) -> None:
    if missing := _untitled(id_map):
        shown = ", ".join(id_map.raw_ids[item] for item in missing[:_SHOWN])
        value = f"{len(missing)} of {id_map.num_items} have none (raw ids {shown})"
        step = "add the titles, or choose dataset.untitled=id or drop"
        raise DataError.one("item titles", value, "dataset.untitled = refuse asks for every item's title", step)


def _untitled(id_map: IdMap) -> list[int]:
    return [item for item, title in enumerate(id_map.titles) if not title.strip()]


def _keep(log: Interactions, rows: NDArray[np.bool_], told: str) -> Interactions:
    """The rows under the mask; a line tells how many went."""
    gone = len(rows) - int(rows.sum())
    if not gone:
        return log
    _log.info("%s: %s of %s interactions are dropped: %s", log.name, f"{gone:,}", f"{len(rows):,}", told)
    ratings = None if log.ratings is None else log.ratings[rows]
    return replace(log, users=log.users[rows], items=log.items[rows], timestamps=log.timestamps[rows], ratings=ratings)


def _at_least(log: Interactions, min_rating: float | None) -> Interactions:
    """The interactions with that rating or a better one."""
    if min_rating is None:
        return log
    if log.ratings is None:
        rule = f"{log.name} has no ratings to compare with"
        raise ConfigError.one("dataset.min_rating", min_rating, rule, "remove this option")
    return _keep(log, log.ratings >= min_rating, f"rated below dataset.min_rating = {min_rating:g}")


def _first_of_each(log: Interactions) -> Interactions:
    """The rows without those that repeat an earlier one's user, item, time and rating."""
    rows = pd.DataFrame({"pair": log.users * log.id_map.num_items + log.items, "time": log.timestamps})
    if log.ratings is not None:
        rows["rating"] = log.ratings
    return _keep(log, ~rows.duplicated().to_numpy(), "they repeat an earlier row (dataset.duplicates=drop)")


def _titled(log: Interactions) -> Interactions:
    missing = np.zeros(log.id_map.num_items, dtype=bool)
    missing[_untitled(log.id_map)] = True
    return _keep(log, ~missing[log.items], f"their {int(missing.sum()):,} items have no title (dataset.untitled=drop)")


def _core(log: Interactions, least_user: int, least_item: int) -> Interactions:
    """Users and items with enough interactions among each other, dropped in turn until neither changes."""
    if least_user == 1 and least_item == 1:
        return log
    kept = np.ones(len(log.users), dtype=bool)
    users, items = log.users, log.items
    while True:
        few_users = np.bincount(users[kept], minlength=int(users.max(initial=-1)) + 1) < least_user
        few_items = np.bincount(items[kept], minlength=log.id_map.num_items) < least_item
        now = kept & ~few_users[users] & ~few_items[items]
        if now.sum() == kept.sum():
            told = (
                f"users with fewer than {least_user} or items with fewer than {least_item} "
                f"({log.num_users - len(np.unique(users[kept])):,} users, "
                f"{len(np.unique(items)) - len(np.unique(items[kept])):,} items)"
            )
            return _keep(log, kept, told)
        kept = now


def _only_used_items(log: Interactions) -> Interactions:
    """The catalogue without items that nobody met: they can be no target, and would only weaken every ranking."""
    met = np.zeros(log.id_map.num_items, dtype=bool)
    met[log.items] = True
    if met.all():
        return log
    used = np.flatnonzero(met)
    place = np.cumsum(met) - 1
    return replace(log, items=place[log.items], id_map=log.id_map.take(used))
