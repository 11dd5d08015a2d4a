"""Histories as views: any window of the whole past, and a split that keeps nothing later than itself."""

from __future__ import annotations

import numpy as np
import torch

from src.data.examples import Histories
from src.data.id_map import IdMap
from src.data.interactions import Interactions
from src.data.sequences import build_examples
from src.data.splits import temporal_split
from src.data.tensor_examples import TensorExamples
from tests.fixtures import examples_of

V = 9


def _log() -> Interactions:
    # user 0 at odd times: 1 2 3 4; user 1 at even times: 5 6 7
    users, items = np.array([0, 1, 0, 1, 0, 1, 0]), np.array([1, 5, 2, 6, 3, 7, 4])
    ids = tuple(map(str, range(V)))
    return Interactions("toy", users, items, np.arange(7.0), None, IdMap(ids, ids))


def test_a_history_is_read_at_any_width() -> None:
    examples = TensorExamples.of(build_examples(_log(), window=2, min_history=1), "cpu")
    assert examples.target.tolist() == [2, 6, 3, 7, 4]
    assert examples.history.tolist() == [[1, V], [5, V], [1, 2], [5, 6], [2, 3]]
    history, length = examples.read(torch.tensor([4, 0]), window=4)
    assert history.tolist() == [[1, 2, 3, V], [1, V, V, V]]
    assert length.tolist() == [3, 1]
    assert examples.read_all(torch.tensor([0, 3])).tolist() == [[1, V], [5, 6]]


def test_a_split_holds_nothing_that_came_after_it() -> None:
    examples = build_examples(_log(), window=2, min_history=1)
    train, validation, test = temporal_split(examples, 0.4, 0.4)
    assert train.past.items.tolist() == [1, 5]
    assert validation.past.items.tolist() == [1, 2, 5, 6]
    assert test.past.items.tolist() == [1, 2, 3]
    assert [part.history.tolist() for part in (train, validation, test)] == [
        [[1, V], [5, V]],
        [[1, 2], [5, 6]],
        [[2, 3]],
    ]


def test_rows_of_a_table_keep_their_cells() -> None:
    examples = examples_of([[0, 1, 2], [], [4]], [3, 3, 3], 0, V)
    assert examples.past.items.tolist() == [0, 1, 2, 4]
    assert examples.length.tolist() == [3, 0, 1]
    assert examples.take(np.array([2, 1])).history[:, 0].tolist() == [4, V]


def test_no_history_at_all_reads_as_padding() -> None:
    nothing = Histories(np.zeros(0, np.int32), np.zeros(2, np.int64), np.zeros(2, np.int64), V)
    assert nothing.dense(3)[0].tolist() == [[V] * 3] * 2
    assert len(nothing.compact().items) == 0
    tensors = TensorExamples.of(examples_of([[], []], [1, 2], 0, V), "cpu")
    assert tensors.read(torch.tensor([0, 1]), 2)[0].tolist() == [[V, V]] * 2


def test_tensors_survive_their_names() -> None:
    made = TensorExamples.of(build_examples(_log(), window=2, min_history=1), "cpu")
    again = TensorExamples.of_tensors(made.tensors())
    assert again.history.tolist() == made.history.tolist()
    assert (again.window, again.padding_id) == (2, V)
