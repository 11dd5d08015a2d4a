"""Rules about rows and items: what goes, in which order, and the line that counts it."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from src.core.errors import ConfigError, DataError
from src.data.id_map import IdMap
from src.data.interactions import Interactions
from src.data.row_rules import apply_rules, check_untitled
from src.data.settings import DatasetSettings

# user, item, time, rating
ROWS = [
    (0, 0, 1, 5), (0, 0, 1, 5), (0, 1, 2, 4), (0, 2, 3, 3),
    (1, 0, 1, 5), (1, 1, 2, 1), (1, 3, 3, 2),
    (2, 0, 9, 5), (2, 0, 9, 4),
]  # fmt: skip
LOG = Interactions(
    "toy",
    np.array([row[0] for row in ROWS]),
    np.array([row[1] for row in ROWS]),
    np.array([row[2] for row in ROWS], dtype=np.float64),
    np.array([row[3] for row in ROWS], dtype=np.float32),
    IdMap(("a", "b", "c", "d", "e"), ("A", "", "C", "D", "E")),
)
PLAIN = DatasetSettings()


def test_without_rules_only_items_that_nobody_met_go() -> None:
    log = apply_rules(LOG, PLAIN)
    assert log.id_map.raw_ids == ("a", "b", "c", "d")
    assert (log.items == LOG.items).all()


def test_repeated_rows_count_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log = apply_rules(LOG, replace(PLAIN, duplicates="drop"))
    assert len(log.users) == 8  # the last two rows differ in their rating
    assert "toy: 1 of 9 interactions are dropped: they repeat an earlier row (dataset.duplicates=drop)" in caplog.text


def test_items_without_a_title_can_go(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log = apply_rules(LOG, replace(PLAIN, untitled="drop"))
    assert log.id_map.titles == ("A", "C", "D")
    assert "2 of 9 interactions are dropped: their 1 items have no title" in caplog.text


def test_items_without_a_title_can_be_refused() -> None:
    with pytest.raises(DataError, match=r"1 of 4 have none \(raw ids b\).*choose dataset.untitled=id or drop"):
        apply_rules(LOG, replace(PLAIN, untitled="refuse"))
    nobody = replace(LOG, id_map=replace(LOG.id_map, titles=("A", "B", "C", "D", ""), texts=()))
    assert apply_rules(nobody, replace(PLAIN, untitled="refuse")).id_map.untitled == 0


def test_the_core_is_a_fixed_point(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log = apply_rules(LOG, replace(PLAIN, min_user_interactions=3, min_item_interactions=2))
        # user 2 (two rows) goes, users 0 and 1 lose c and d; user 1 is left with two rows and goes, then item b with
        # one goes, and user 0 with two rows: nothing is left
        assert len(log.users) == 0
        log = apply_rules(LOG, replace(PLAIN, min_user_interactions=2, min_item_interactions=2))
    assert sorted(zip(log.users.tolist(), log.items.tolist(), strict=True)) == [
        (0, 0), (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 0),
    ]  # fmt: skip
    assert "(0 users, 2 items)" in caplog.text


def test_ratings_come_first_and_need_ratings() -> None:
    log = apply_rules(LOG, replace(PLAIN, min_rating=4.0, min_item_interactions=2))
    assert log.id_map.raw_ids == ("a",)
    assert len(log.users) == 5
    with pytest.raises(ConfigError, match="toy has no ratings"):
        apply_rules(replace(LOG, ratings=None), replace(PLAIN, min_rating=1.0))


def test_texts_and_fields_stay_with_their_items() -> None:
    id_map = replace(LOG.id_map, texts=("A1", "B1", "C1", "D1", "E1"), fields={"year": ("1", "2", "3", "4", "5")})
    log = apply_rules(replace(LOG, id_map=id_map), replace(PLAIN, untitled="drop"))
    assert log.id_map.texts == ("A1", "C1", "D1")
    assert log.id_map.fields == {"year": ("1", "3", "4")}


def test_rows_of_ready_made_splits_cannot_be_dropped() -> None:
    with pytest.raises(ConfigError, match=r"dataset.untitled = 'drop': items of a ready-made split cannot be dropped"):
        check_untitled(LOG.id_map, replace(PLAIN, untitled="drop"))
