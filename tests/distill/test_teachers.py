"""Teachers other than a language model: scores become outputs, and several outputs become one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from src.core.errors import ConfigError
from src.data.teacher_outputs import TeacherOutputs
from src.distill.teachers import combined, outputs_from_scores

V = 5


def outputs(rows: dict[int, dict[int, float]], width: int = 0) -> TeacherOutputs:
    """From example ids and the probabilities of their candidates, best first."""
    ids = np.array(list(rows), np.int64)
    candidates = np.array([list(row) for row in rows.values()], np.int64)
    distances = -np.log(np.array([list(row.values()) for row in rows.values()], np.float32))
    embedding = np.arange(V * width, dtype=np.float32).reshape(V, width)
    return TeacherOutputs(
        ids, candidates, -distances, distances, np.zeros((len(ids), 0), np.float32), embedding, {"from": width}
    )


def test_scores_become_the_best_items_and_their_log_probabilities() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, 0.0, -1.0], [0.0, 0.0, 0.0, 9.0, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    asked = list[list[int]]()

    def score(rows: Tensor) -> Tensor:
        asked.append(rows.tolist())
        return scores[rows]

    found = outputs_from_scores(score, np.array([70, 50, 60]), V, 3, {"model": "m"})
    assert asked == [[0, 1, 2]]
    assert found.example_id.tolist() == [70, 50, 60]
    assert found.candidates[[0, 2]].tolist() == [[1, 2, 0], [0, 1, 2]]
    assert found.candidates[1, 0] == 3
    expected = -scores.log_softmax(dim=1).topk(3, dim=1).values
    assert np.allclose(found.distances, expected.numpy(), atol=1e-6)
    assert np.array_equal(found.scores, -found.distances)
    assert (found.sequence_embedding.shape, found.item_embedding.shape) == ((3, 0), (V, 0))
    assert found.manifest == {"model": "m"}
    assert found.check(V) == []


def test_no_distance_is_below_zero_and_no_list_longer_than_the_catalogue() -> None:
    certain = torch.tensor([[200.0, 0.0, 0.0, 0.0, 0.0]])
    found = outputs_from_scores(lambda rows: certain[rows], np.array([1]), V, 50, {})
    assert found.candidates.shape == (1, V)
    assert float(found.distances.min()) == 0.0
    assert found.check(V) == []


def test_one_teacher_is_left_as_it_is() -> None:
    one = outputs({3: {0: 0.5, 1: 0.25}})
    assert combined([one], V) is one


def test_several_teachers_are_the_mean_of_their_distributions() -> None:
    first = outputs({10: {0: 0.6, 1: 0.3}, 11: {4: 0.8, 2: 0.1}})
    second = outputs({10: {1: 0.5, 2: 0.4}, 11: {2: 0.6, 3: 0.2}})
    found = combined([first, second], V)
    assert found.example_id.tolist() == [10, 11]
    # 10: 0 has 0.3, 1 has 0.4, 2 has 0.2; 11: 4 has 0.4, 2 has 0.35, 3 has 0.1
    assert found.candidates.tolist() == [[1, 0], [4, 2]]
    assert np.allclose(np.exp(-found.distances), [[0.4, 0.3], [0.4, 0.35]], atol=1e-6)


def test_a_row_that_one_teacher_labelled_is_that_teachers() -> None:
    first = outputs({12: {0: 0.6, 1: 0.3}, 10: {3: 0.7, 0: 0.2}})
    second = outputs({10: {3: 0.1, 4: 0.8}, 15: {2: 0.9, 1: 0.05}})
    found = combined([first, second], V)
    assert found.example_id.tolist() == [10, 12, 15]
    assert [set(row) for row in found.candidates.tolist()] == [{3, 4}, {0, 1}, {2, 1}]
    assert np.allclose(np.exp(-found.distances[1:]), [[0.6, 0.3], [0.9, 0.05]], atol=1e-6)
    assert np.allclose(np.exp(-found.distances[0]), [0.4, 0.4], atol=1e-6)


def test_what_nobody_lists_is_far_and_finite() -> None:
    same = [outputs({1: {0: 0.6, 1: 0.3, 2: 0.05}}), outputs({1: {2: 0.6, 1: 0.3, 0: 0.05}})]
    found = combined(same, V)
    assert set(found.candidates[0]) == {0, 1, 2}
    assert bool(np.isfinite(found.distances).all())
    assert found.check(V) == []


def test_embeddings_are_those_of_the_first_teacher_that_has_them() -> None:
    blind, seeing = outputs({1: {0: 0.6, 1: 0.3}}), outputs({1: {1: 0.6, 2: 0.3}}, width=3)
    found = combined([blind, seeing], V)
    assert np.array_equal(found.item_embedding, seeing.item_embedding)
    assert found.manifest == {"from": 3}
    assert combined([blind, blind], V).item_embedding.shape == (V, 0)


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ConfigError, match="must list the same number of candidates"):
        combined([outputs({1: {0: 0.6, 1: 0.3}}), outputs({1: {0: 0.6, 1: 0.3, 2: 0.1}})], V)
