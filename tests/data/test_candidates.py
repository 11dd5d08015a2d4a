"""Negatives and candidate lists: never a forbidden item, every other one equally likely."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from src.core.errors import DataError
from src.data.candidates import draw_candidates, draw_from_offsets, draw_negatives, forbidden_offsets, require_negatives

V = 6
HISTORY = torch.tensor([[3, 3, 1, V, V], [V, V, V, V, V], [0, 1, 2, 3, V], [5, 4, 3, 2, 1]])
TARGET = torch.tensor([5, 0, 4, 1])
ALLOWED = [{0, 2, 4}, {1, 2, 3, 4, 5}, {5}, {0}]


def test_offsets_by_hand() -> None:
    offsets, allowed = forbidden_offsets(HISTORY[:1], TARGET[:1], V)
    # forbidden 1, 3, 5 → 1 − 0, 3 − 1, 5 − 2: ranks 0, 1, 2 become items 0, 2, 4
    assert offsets[0, :3].tolist() == [1, 2, 3]
    assert allowed.tolist() == [3]
    assert (offsets[0, 3:] > 2).all()


def test_draws_are_uniform_over_exactly_the_allowed_items() -> None:
    draws = 30_000
    drawn = draw_negatives(HISTORY, TARGET, V, draws, torch.Generator().manual_seed(0))
    assert drawn.shape == (4, draws)
    for row, allowed in zip(drawn, ALLOWED, strict=True):
        counts = torch.bincount(row, minlength=V)
        assert {item for item in range(V) if counts[item]} == allowed
        expected = draws / len(allowed)
        # five standard deviations of a binomial count
        assert (counts[sorted(allowed)] - expected).abs().max() <= 5 * expected**0.5


def test_prepared_offsets_give_the_same_draws() -> None:
    offsets, allowed = forbidden_offsets(HISTORY, TARGET, V)
    rows = torch.tensor([2, 0])
    one = draw_from_offsets(offsets[rows], allowed[rows], 3, torch.Generator().manual_seed(5))
    other = draw_negatives(HISTORY[rows], TARGET[rows], V, 3, torch.Generator().manual_seed(5))
    assert one.tolist() == other.tolist()


def test_large_random_rows_never_hit_a_forbidden_item() -> None:
    generator = torch.Generator().manual_seed(1)
    history = torch.randint(0, 41, (500, 12), generator=generator)  # 40 is the padding
    target = torch.randint(0, 40, (500,), generator=generator)
    drawn = draw_negatives(history, target, 40, 50, generator)
    assert drawn.min() >= 0
    assert drawn.max() < 40
    assert not (drawn.unsqueeze(2) == history.unsqueeze(1)).any()
    assert not (drawn == target.unsqueeze(1)).any()


def test_a_row_without_any_negative_is_refused() -> None:
    with pytest.raises(DataError, match=r"covers all 3 items.*dataset\.window"):
        require_negatives(np.array([[0, 1], [0, 3]]), np.array([2, 1]), 3)
    require_negatives(np.array([[0, 3]]), np.array([1]), 3)


def test_candidate_list() -> None:
    history = np.array([2, 3, 4, 10, 10])
    lists = [draw_candidates(history, 7, 10, 5, np.random.default_rng(seed)) for seed in range(200)]
    for candidates in lists:
        assert len(set(candidates.tolist())) == 5
        assert 7 in candidates
        assert not {2, 3, 4, 10} & set(candidates.tolist())
    assert {candidates.tolist().index(7) for candidates in lists} == set(range(5))
    assert set(np.concatenate(lists).tolist()) == {0, 1, 5, 6, 7, 8, 9}
    again = draw_candidates(history, 7, 10, 5, np.random.default_rng(0))
    assert again.tolist() == lists[0].tolist()
    with pytest.raises(DataError, match="only 7 items"):
        draw_candidates(history, 7, 10, 8, np.random.default_rng(0))
