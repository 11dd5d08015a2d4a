"""What the sides of the comparison with peers share: sequences, ranks, the clock's curve, and what is withheld."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.against_peers import ARMS, best_epoch, columns, seconds_to
from benchmarks.peer_trial import Rows, Task, Trial, left_padded, ndcg
from src.data.examples import Examples

#: two users: one met 4, 2, 0, 3 (targets 0 and 3), the other 1, 4 (target 2)
ROWS = Rows(np.array([4, 2, 0, 1, 4]), np.array([2, 3, 5]), np.array([2, 3, 2]), np.array([0, 3, 2]))


def same_for_all(histories: list[NDArray[np.int64]]) -> Tensor:
    """Item 0 first, then 1, 2, 3, 4."""
    return torch.arange(5, 0, -1.0).repeat(len(histories), 1)


def test_a_users_sequence_is_its_longest_history_and_the_last_target() -> None:
    assert [sequence.tolist() for sequence in ROWS.sequences()] == [[4, 2, 0, 3], [1, 4, 2]]


def test_ndcg_by_hand_and_a_tie_counts_against_the_target() -> None:
    # ranks 1, 4 and 3
    want = (1 + 1 / math.log2(5) + 1 / 2) / 3
    assert ndcg(same_for_all, ROWS, np.arange(3)) == pytest.approx(want)
    # all alike: every target is fifth
    found = ndcg(lambda histories: torch.zeros(len(histories), 5), ROWS, np.arange(3))
    assert found == pytest.approx(1 / math.log2(6))


def test_histories_stand_behind_the_padding_and_lose_their_oldest_items() -> None:
    padded = left_padded([np.array([4, 2, 0]), np.array([], np.int64), np.array([1])], 2, 9)
    assert padded.tolist() == [[2, 0], [9, 9], [9, 1]]


def test_the_curve_tells_the_best_epoch_and_when_a_level_was_reached() -> None:
    curve = [{"seconds": second, "ndcg": value} for second, value in ((1.0, 0.1), (2.0, 0.3), (3.0, 0.2))]
    assert best_epoch({"curve": curve})["seconds"] == 2.0
    assert seconds_to({"curve": curve}, 0.1) == 1.0
    assert seconds_to({"curve": curve}, 0.31) == math.inf


def test_a_trial_ends_when_validation_has_not_risen_and_keeps_the_best_state() -> None:
    task = Task(ROWS, ROWS, ROWS, np.arange(3), 5, {}, seed=0, epochs=9, patience=2)
    module = nn.Linear(5, 1, bias=False)
    trial = Trial(task, module, lambda histories: module.weight.detach().repeat(len(histories), 1))
    stops = []
    # targets are 0, 3 and 2: the second state ranks them best
    for weights in ([0, 1, 0, 0, 2.0], [4, 0, 2, 3, 1.0], [0, 5, 1, 1, 5.0], [0, 5, 1, 1, 5.0]):
        module.weight.data = torch.tensor([weights])
        stops.append(trial.epoch_ended())
    assert stops == [False, False, False, True]
    assert trial.state["weight"].tolist() == [[4, 0, 2, 3, 1]]
    assert [round(epoch["seconds"], 9) for epoch in trial.curve] == sorted(round(e["seconds"], 9) for e in trial.curve)


def test_the_answers_of_the_test_split_are_withheld() -> None:
    past = SimpleNamespace(items=ROWS.items, end=ROWS.end, earlier=ROWS.earlier)
    split: Examples = SimpleNamespace(past=past, target=ROWS.target)  # type: ignore[assignment]
    assert columns(split, "test", False)["test_target"].size == 0
    assert columns(split, "train")["train_target"].tolist() == [0, 3, 2]


def test_every_arm_gets_the_same_number_of_tries() -> None:
    assert {len(arm.tries) for arm in ARMS.values()} == {3}
