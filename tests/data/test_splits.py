"""Histories, time order and splits, checked on logs small enough for paper."""

from __future__ import annotations

import numpy as np
import pytest

from src.data.examples import Examples
from src.data.id_map import IdMap
from src.data.interactions import Interactions
from src.data.sequences import build_examples
from src.data.splits import leave_one_out_split, temporal_split


def _log(rows: list[tuple[int, int, float]], num_items: int = 9) -> Interactions:
    users, items, times = (np.array(column) for column in zip(*rows, strict=True))
    id_map = IdMap(tuple(f"i{n}" for n in range(num_items)), tuple(f"t{n}" for n in range(num_items)))
    return Interactions("toy", users.astype(np.int64), items.astype(np.int64), times.astype(np.float64), None, id_map)


def test_equal_timestamps_keep_the_file_order_and_windows_keep_the_latest() -> None:
    # user 0 in time order: 4 (t=1), 1, 2 (both t=5, file order), 3 (t=9); user 1: 8 (t=2), 7 (t=5)
    log = _log([(0, 1, 5), (1, 8, 2), (0, 2, 5), (0, 4, 1), (1, 7, 5), (0, 3, 9)])
    examples = build_examples(log, window=2, min_history=1)
    # global time order: u0:4, u1:8, u0:1, u0:2, u1:7, u0:3 → places 0..5
    assert examples.example_id.tolist() == [2, 3, 4, 5]
    assert examples.user.tolist() == [0, 0, 1, 0]
    assert examples.target.tolist() == [1, 2, 7, 3]
    assert examples.history.tolist() == [[4, 9], [4, 1], [8, 9], [1, 2]]
    assert examples.length.tolist() == [1, 2, 1, 2]
    assert examples.timestamp.tolist() == [5, 5, 5, 9]


def test_without_a_least_history_first_items_are_targets_too() -> None:
    examples = build_examples(_log([(0, 1, 1), (0, 2, 2)]), window=3, min_history=0)
    assert examples.history.tolist() == [[9, 9, 9], [1, 9, 9]]
    assert examples.length.tolist() == [0, 1]


def test_an_empty_log_gives_no_examples() -> None:
    empty = np.zeros(0, np.int64)
    log = Interactions("toy", empty, empty, empty.astype(float), None, IdMap((), ()))
    examples = build_examples(log, window=3, min_history=1)
    assert len(examples) == 0
    assert examples.history.shape == (0, 3)


def _numbered(count: int, users: list[int] | None = None) -> Examples:
    column = np.arange(count)
    user = column * 0 if users is None else np.array(users)
    return Examples.of_rows(column, user, column[:, None], column * 0 + 1, column, column.astype(float))


@pytest.mark.parametrize(
    ("count", "train", "validation", "sizes"),
    [
        (10, 0.8, 0.1, (8, 1, 1)),
        (97171, 0.8, 0.1, (77736, 9717, 9718)),
        (10, 0.7, 0.1, (7, 1, 2)),
        (7, 0.5, 0.3, (3, 2, 2)),
    ],
)
def test_temporal_shares(count: int, train: float, validation: float, sizes: tuple[int, int, int]) -> None:
    parts = temporal_split(_numbered(count), train, validation)
    assert tuple(len(part) for part in parts) == sizes
    assert np.concatenate([part.example_id for part in parts]).tolist() == list(range(count))


def test_leave_one_out_takes_each_users_last_targets() -> None:
    # user 0 has targets 0, 2, 5, 6; user 1 has 1, 4; user 2 has 3
    train, validation, test = leave_one_out_split(_numbered(7, [0, 1, 0, 2, 1, 0, 0]))
    assert train.example_id.tolist() == [0, 2]
    assert validation.example_id.tolist() == [1, 5]
    assert test.example_id.tolist() == [3, 4, 6]
