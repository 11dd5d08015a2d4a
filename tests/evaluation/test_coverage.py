"""Metrics of recommended lists, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from src.evaluation import coverage
from src.evaluation.coverage import summarise_lists

COUNTS = np.array([9, 5, 0, 6, 1, 7])  # items 1, 2 and 4 are rare


def test_coverage_and_rare_share_by_hand() -> None:
    found = summarise_lists([[0, 1], [0, 2], [3, 0]], COUNTS)
    assert found == {"coverage_2": 4 / 6, "rare_share_2": 2 / 6}


def test_what_everybody_gets_covers_little() -> None:
    assert summarise_lists([[0, 3, 5]] * 50, COUNTS) == {"coverage_3": 3 / 6, "rare_share_3": 0.0}
    assert summarise_lists([[4]], COUNTS) == {"coverage_1": 1 / 6, "rare_share_1": 1.0}


def test_a_function_below_the_decorator_is_a_metric_under_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "_METRICS", dict(coverage._METRICS))

    @coverage.list_metric
    def first_item(lists: np.ndarray, training_count: np.ndarray) -> float:
        return float(lists[:, 0].mean() + len(training_count))

    assert summarise_lists([[1, 0], [3, 0]], COUNTS)["first_item_2"] == 2 + 6


@pytest.mark.parametrize("lists", [[], [[]], [0, 1], [[0, 6]], [[-1, 0]], [[0.5, 1.0]]])
def test_what_is_no_list_is_refused(lists: list) -> None:
    with pytest.raises(ValueError, match="lists"):
        summarise_lists(lists, COUNTS)
