"""Ranks and metrics by hand."""

from __future__ import annotations

import math

import pytest
import torch

from src.core.metrics import hit_ratio, metric_names, ndcg, recall, summarise, target_ranks


def test_rank_counts_the_items_that_score_at_least_as_much() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.3], [4.0, 3.0, 2.0, 1.0]])
    assert target_ranks(scores, torch.tensor([2, 3])).tolist() == [2, 4]
    assert target_ranks(scores, torch.tensor([1, 0])).tolist() == [1, 1]


def test_a_tie_counts_against_the_target() -> None:
    scores = torch.tensor([[0.5, 0.5, 0.5, 0.1]])
    assert target_ranks(scores, torch.tensor([0])).tolist() == [3]
    assert target_ranks(scores, torch.tensor([3])).tolist() == [4]


def test_a_constant_scorer_earns_nothing() -> None:
    targets = torch.arange(30)
    metrics = summarise(target_ranks(torch.zeros(30, 30), targets), (5, 10, 20))
    assert set(metrics.values()) == {0.0}


def test_metrics_of_hand_made_ranks() -> None:
    ranks = torch.tensor([1, 2, 4, 7])
    assert summarise(ranks, (3,)) == pytest.approx(
        {"recall_3": 2 / 4, "hit_ratio_3": 2 / 4, "ndcg_3": (1 / math.log2(2) + 1 / math.log2(3)) / 4}
    )
    assert ndcg(ranks, 4).tolist() == pytest.approx([1, 1 / math.log2(3), 1 / math.log2(5), 0])
    assert hit_ratio(ranks, 4).tolist() == recall(ranks, 4).tolist() == [1, 1, 1, 0]


def test_metrics_are_double_precision() -> None:
    assert ndcg(torch.tensor([2]), 5).dtype == torch.float64


def test_metric_names_are_those_of_summarise_and_hold_no_at_sign() -> None:
    assert set(metric_names((5, 20))) == set(summarise(torch.tensor([1]), (5, 20)))
    assert not any("@" in name for name in metric_names((5,)))


def test_no_rows_is_an_error_and_not_a_metric() -> None:
    with pytest.raises(ValueError, match="no rows"):
        summarise(torch.zeros(0, dtype=torch.int64), (5,))
