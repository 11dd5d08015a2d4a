"""Negatives and candidate lists: never a forbidden item, every other one equally likely."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from src.core.errors import ArtefactError, DataError
from src.data.candidates import (
    CandidateLists,
    draw_candidate_lists,
    draw_from_offsets,
    draw_negatives,
    forbidden_offsets,
    load_candidates,
    require_negatives,
    save_candidates,
)
from tests.fixtures import NUM_ITEMS, cycle_examples, examples_of

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
        require_negatives(examples_of([[0, 1], [0]], [2, 1], 0, 3), 3)
    require_negatives(examples_of([[0]], [1], 0, 3), 3)


def test_candidate_list() -> None:
    examples = examples_of([[2, 3, 4]], [7], first_id=1, num_items=10)
    lists = [draw_candidate_lists(examples, 10, 5, seed).items[0] for seed in range(200)]
    for candidates in lists:
        assert len(set(candidates.tolist())) == 5
        assert 7 in candidates
        assert not {2, 3, 4, 10} & set(candidates.tolist())
    assert {candidates.tolist().index(7) for candidates in lists} == set(range(5))
    assert set(np.concatenate(lists).tolist()) == {0, 1, 5, 6, 7, 8, 9}
    again = draw_candidate_lists(examples, 10, 5, 0).items[0]
    assert again.tolist() == lists[0].tolist()
    with pytest.raises(DataError, match="leaves 7 of 10 items"):
        draw_candidate_lists(examples, 10, 8, 0)


def test_every_list_holds_the_target_and_distinct_items_outside_the_history() -> None:
    examples = cycle_examples(200, 100)
    lists = draw_candidate_lists(examples, NUM_ITEMS, 5, 3)
    assert lists.items.shape == (200, 5)
    for items, history, target in zip(lists.items, examples.history, examples.target, strict=True):
        assert len(set(items.tolist())) == 5
        assert target in items
        assert not (set(items.tolist()) - {target}) & set(history.tolist())
        assert items.max() < NUM_ITEMS


def test_every_list_and_every_place_of_the_target_is_equally_likely() -> None:
    rows = 12_000
    # 4 is the target, 0 was seen: two of {1, 2, 3, 5} stand beside the target
    examples = examples_of([[0]] * rows, [4] * rows, first_id=7, num_items=6)
    lists = draw_candidate_lists(examples, 6, 3, 0).items
    pairs = [tuple(sorted(set(row.tolist()) - {4})) for row in lists]
    counts = {pair: pairs.count(pair) for pair in combinations((1, 2, 3, 5), 2)}
    assert sum(counts.values()) == rows
    # six pairs, three places: five standard deviations of a binomial count
    assert max(abs(count - rows / 6) for count in counts.values()) <= 5 * (rows / 6) ** 0.5
    places = np.bincount(np.argmax(lists == 4, axis=1), minlength=3)
    assert np.abs(places - rows / 3).max() <= 5 * (rows / 3) ** 0.5


def test_a_list_depends_on_the_seed_and_its_example_alone() -> None:
    examples = cycle_examples(30, 100)
    whole, again = (draw_candidate_lists(examples, NUM_ITEMS, 4, 9) for _ in range(2))
    some = examples.take(np.array([20, 3, 11]))
    assert whole.fingerprint == again.fingerprint
    assert np.array_equal(draw_candidate_lists(some, NUM_ITEMS, 4, 9).items, whole.items[[20, 3, 11]])
    assert np.array_equal(whole.of(some), whole.items[[20, 3, 11]])
    assert not np.array_equal(draw_candidate_lists(examples, NUM_ITEMS, 4, 10).items, whole.items)


def test_the_largest_list_is_the_whole_rest_of_the_catalogue_and_no_larger_one_can_be_drawn() -> None:
    examples = examples_of([[0, 1], [2]], [5, 3], first_id=40, num_items=6)
    lists = draw_candidate_lists(examples, 6, 4, 0)
    assert set(lists.items[0].tolist()) == {2, 3, 4, 5}
    with pytest.raises(DataError, match="candidates = 5: example 40 leaves 4 of 6 items"):
        draw_candidate_lists(examples, 6, 5, 0)


def test_saved_lists_are_read_back_identical(tmp_path: Path) -> None:
    lists = draw_candidate_lists(cycle_examples(8, 100), NUM_ITEMS, 4, 9)
    save_candidates(tmp_path / "lists", lists, {"split": "a"})
    loaded = load_candidates(tmp_path / "lists", {"split": "a"})
    assert np.array_equal(loaded.example_id, lists.example_id)
    assert np.array_equal(loaded.items, lists.items)
    with pytest.raises(ArtefactError, match="candidates: split = 'a'.*this run has b"):
        load_candidates(tmp_path / "lists", {"split": "b"})


def test_lists_that_were_changed_or_lost_are_refused(tmp_path: Path) -> None:
    folder, lists = tmp_path / "lists", draw_candidate_lists(cycle_examples(8, 100), NUM_ITEMS, 4, 9)
    save_candidates(folder, lists, {})
    np.save(folder / "items.npy", lists.items[::-1])
    with pytest.raises(ArtefactError, match="are damaged"):
        load_candidates(folder, {})
    (folder / "items.npy").unlink()
    with pytest.raises(ArtefactError, match="cannot be read"):
        load_candidates(folder, {})


def test_lists_of_other_examples_are_refused() -> None:
    examples = cycle_examples(8, 100)
    lists = draw_candidate_lists(examples, NUM_ITEMS, 4, 9)
    with pytest.raises(ArtefactError, match="1 of 9 examples have no candidate list"):
        lists.of(cycle_examples(9, 100))
    shifted = CandidateLists(lists.example_id, (lists.items * 0))
    with pytest.raises(ArtefactError, match="lacks its target"):
        shifted.of(examples)
