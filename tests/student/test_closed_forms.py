"""Models without gradient descent, against sums that are written out row by row and systems that are solved densely."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from src.core.errors import ConfigError
from src.data.examples import Examples, Histories
from src.data.tensor_examples import TensorExamples
from src.student.architectures.ease import Ease, EaseSettings
from src.student.architectures.linear import Linear, LinearSettings
from src.student.architectures.popularity import Popularity, PopularitySettings
from src.student.architectures.transitions import Transitions, TransitionsSettings
from src.student.base import recent
from src.student.baselines import tune_baseline
from src.student.datamodule import StudentData
from src.student.decayed_history import history_times_history, history_times_target, times_matrix, weights
from src.student.settings import EvaluationSettings
from src.student.trainer_baseline import fit_closed_form
from tests.fixtures import cycle_data

V = 7


def log_of(owners: list[list[int]], times: list[float] | None = None, first_row: int = 0) -> TensorExamples:
    """Each owner's items in order; every place from ``first_row`` on is a training row's target."""
    items = [item for owner in owners for item in owner]
    rows = [
        (begin + place, place, owner[place])
        for begin, owner in zip(np.cumsum([0, *map(len, owners)]), owners, strict=False)
        for place in range(first_row, len(owner))
    ]
    end, earlier, target = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    ids = np.arange(len(rows), dtype=np.int64)
    past = Histories(np.array(items, np.int32), end, earlier, V)
    stamps = np.array(times if times is not None else ids, np.float64)
    return TensorExamples.of(Examples(ids, ids, past, 3, target, stamps), "cpu")


def pre_split(histories: list[list[int]], targets: list[int]) -> TensorExamples:
    """Rows that own their items, as sources without users have them."""
    lengths = np.array([len(history) for history in histories], np.int64)
    items = np.array([item for history in histories for item in history], np.int32)
    ids = np.arange(len(targets), dtype=np.int64)
    past = Histories(items, np.cumsum(lengths), lengths, V)
    return TensorExamples.of(Examples(ids, ids, past, 3, np.array(targets), ids.astype(float)), "cpu")


LOGS: dict[str, TensorExamples] = {
    "three owners": log_of([[0, 1, 2, 3, 1], [4, 4, 5, 0], [6, 2, 6, 2, 6, 1]]),
    "rows from the second place on": log_of([[0, 1, 2, 3, 1], [4, 4, 5, 0], [6, 2]], first_row=1),
    "an owner without a history": log_of([[3], [0, 1, 2], [5], [6, 6, 4]]),
    "rows that own their items": pre_split([[0, 1, 2], [], [1, 2, 3, 3], [5], []], [3, 4, 0, 6, 2]),
    "no history anywhere": pre_split([[], []], [3, 4]),
}


def vectors(train: TensorExamples, rows: list[int], window: int, decay: float) -> Tensor:
    """The definition: Σ decay^distance over the last ``window`` items of each row's history, ``[n, V]`` float64."""
    found = torch.zeros(len(rows), V, dtype=torch.float64)
    for number, row in enumerate(rows):
        end, earlier = int(train.end[row]), int(train.earlier[row])
        for distance in range(min(window, earlier)):
            found[number, int(train.items[end - 1 - distance])] += decay**distance
    return found


def subsets(train: TensorExamples) -> list[list[int]]:
    """All rows, every second one, the last one, none."""
    count = len(train)
    return [list(range(count)), list(range(0, count, 2)), [count - 1], []]


@pytest.mark.parametrize("decay", [1.0, 0.7])
@pytest.mark.parametrize("window", [1, 2, 3, 50])
@pytest.mark.parametrize("name", LOGS)
def test_the_sums_over_rows_are_those_of_each_row(name: str, window: int, decay: float) -> None:
    train = LOGS[name]
    for rows in subsets(train):
        h, picked = vectors(train, rows, window, decay), torch.tensor(rows, dtype=torch.int64)
        gram = history_times_history(train, picked, V, window, decay)
        assert torch.allclose(gram, h.T @ h, atol=1e-12), rows
        cross = torch.zeros(V, V, dtype=torch.float64)
        for vector, row in zip(h, rows, strict=True):
            cross[:, int(train.target[row])] += vector
        assert torch.allclose(history_times_target(train, picked, V, window, decay), cross, atol=1e-12), rows


def test_a_part_of_a_longer_log_does_not_need_to_begin_where_the_log_does() -> None:
    whole = LOGS["three owners"]
    later = torch.nonzero(whole.end - whole.earlier > 0).squeeze(1)
    part = TensorExamples(
        whole.items, whole.end[later], whole.earlier[later], whole.target[later], whole.example_id[later],
        whole.timestamp[later], whole.window, whole.padding_id,
    )  # fmt: skip
    rows = list(range(len(part)))
    h = vectors(part, rows, 3, 0.6)
    assert torch.allclose(history_times_history(part, torch.tensor(rows), V, 3, 0.6), h.T @ h, atol=1e-12)


def test_weights_count_back_from_the_last_item() -> None:
    found = weights(torch.tensor([3, 1, 0]), 4, 0.5)
    assert found.tolist() == [[0.25, 0.5, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ways_to_multiply_agree(dtype: torch.dtype) -> None:
    """A narrow window gathers rows (8 · L < V), a wide one multiplies: the same sum."""
    torch.manual_seed(0)
    items, length = torch.randint(0, 40, (6, 4)), torch.tensor([4, 3, 2, 1, 0, 4])
    items = items.masked_fill(torch.arange(4) >= length.unsqueeze(1), 40)
    matrix = torch.randn(40, 5, dtype=dtype)
    wide = torch.cat([items, torch.full((6, 8), 40)], dim=1)
    narrow, product = (times_matrix(history, length, 0.8, matrix) for history in (items, wide))
    assert torch.allclose(narrow, product, atol=1e-5)
    expected = torch.stack(
        [
            sum((0.8 ** (n - 1 - i) * matrix[items[row, i]] for i in range(n)), torch.zeros(5, dtype=dtype))
            for row, n in enumerate(length.tolist())
        ]
    )
    assert torch.allclose(narrow, expected, atol=1e-5)


def test_recent_keeps_the_latest_items() -> None:
    history = torch.tensor([[1, 2, 3, 4], [5, 6, V, V], [V, V, V, V]])
    length = torch.tensor([4, 2, 0])
    cut, kept = recent(history, length, 2, V)
    assert (cut.tolist(), kept.tolist()) == ([[3, 4], [5, 6], [V, V]], [2, 2, 0])
    cut, kept = recent(history, length, 3, V)
    assert (cut.tolist(), kept.tolist()) == ([[2, 3, 4], [5, 6, V], [V, V, V]], [3, 2, 0])
    untouched, _ = recent(history, length, 9, V)
    assert untouched is history


@pytest.mark.parametrize("name", LOGS)
def test_linear_is_the_ridge_that_a_dense_solver_finds(name: str) -> None:
    train = LOGS[name]
    settings = LinearSettings(window=3, decay=0.6, l2=0.5)
    model = Linear(settings, V, 3)
    rows = list(range(len(train)))
    model.fit(train, torch.tensor(rows))
    x = vectors(train, rows, 3, 0.6).numpy()
    y = np.eye(V)[train.target.numpy()]
    # ridge as ordinary least squares with sqrt(λ) rows below
    expected = np.linalg.lstsq(np.vstack([x, 0.5**0.5 * np.eye(V)]), np.vstack([y, np.zeros((V, V))]), rcond=None)[0]
    assert np.allclose(model.weight.numpy(), expected, atol=1e-5)
    scores = model(*train.read(torch.tensor(rows)))
    assert np.allclose(scores.numpy(), x @ expected, atol=1e-5)


def test_linear_moves_towards_nothing_as_the_penalty_grows() -> None:
    train = LOGS["three owners"]
    norms = []
    for l2 in (0.1, 10.0, 1e6):
        model = Linear(LinearSettings(window=3, l2=l2), V, 3)
        model.fit(train, torch.arange(len(train)))
        norms.append(float(model.weight.norm()))
    assert norms[0] > norms[1] > norms[2]
    assert norms[2] < 1e-4


EASE_SETS = {
    "three owners": [{0, 1, 2, 3}, {4, 5, 0}, {6, 2, 1}],
    "rows from the second place on": [{0, 1, 2, 3}, {4, 5, 0}, {6, 2}],
    "an owner without a history": [{3}, {0, 1, 2}, {5}, {6, 4}],
    "rows that own their items": [{0, 1, 2, 3}, {4}, {1, 2, 3, 0}, {5, 6}, {2}],
    "no history anywhere": [{3}, {4}],
}


@pytest.mark.parametrize("name", LOGS)
def test_ease_counts_each_users_set_once_and_predicts_no_item_from_itself(name: str) -> None:
    train = LOGS[name]
    model = Ease(EaseSettings(window=3, decay=0.5, l2=2.0), V, 3)
    model.fit(train, torch.arange(len(train)))
    x = np.zeros((len(EASE_SETS[name]), V))
    for row, items in enumerate(EASE_SETS[name]):
        x[row, list(items)] = 1
    p = np.linalg.inv(x.T @ x + 2.0 * np.eye(V))
    expected = np.eye(V) - p / np.diag(p)
    assert np.allclose(model.weight.numpy(), expected, atol=1e-5)
    assert model.weight.diagonal().abs().max() == 0


def test_ease_knows_of_an_owner_what_the_given_rows_show() -> None:
    train = LOGS["three owners"]
    model = Ease(EaseSettings(l2=2.0), V, 3)
    # the first owner's row with history [0] and target 1, and the second owner's first row, which has no history
    model.fit(train, torch.tensor([1, 5]))
    x = np.zeros((2, V))
    x[0, [0, 1]], x[1, 4] = 1, 1
    p = np.linalg.inv(x.T @ x + 2.0 * np.eye(V))
    assert np.allclose(model.weight.numpy(), np.eye(V) - p / np.diag(p), atol=1e-6)


def test_transitions_by_hand() -> None:
    """Rows ([0], 1), ([0, 1], 2): item 0 is at distance 0, then 1; item 1 at distance 0."""
    train = pre_split([[0], [0, 1]], [1, 2])
    settings = TransitionsSettings(window=5, decay=0.5, count_decay=0.25, normalise=0.5, discount=1.0)
    model = Transitions(settings, V, 3)
    model.fit(train, torch.arange(2))
    expected = torch.zeros(V, V)
    # counts: 0→1: 1, 0→2: 1/4, 1→2: 1; row sums 5/4 and 1; targets 1 and 2 once each, plus one
    expected[0, 1] = 1 / (5 / 4) ** 0.5 / 2
    expected[0, 2] = (1 / 4) / (5 / 4) ** 0.5 / 2
    expected[1, 2] = 1 / 1 / 2
    assert torch.allclose(model.weight, expected)
    scores = model(torch.tensor([[0, 1]]), torch.tensor([2]))
    assert torch.allclose(scores[0], expected[0] / 2 + expected[1])


def test_popularity_counts_targets_and_tells_equals_apart_by_index() -> None:
    train = pre_split([[], [], [], []], [5, 2, 5, 0])
    model = Popularity(PopularitySettings(), V, 3)
    model.fit(train, torch.arange(4))
    order = model(torch.full((1, 3), V), torch.zeros(1, dtype=torch.int64))[0].argsort(descending=True)
    assert order.tolist() == [5, 0, 2, 1, 3, 4, 6]
    assert model.counts[5] - model.counts[0] > 0.2
    model.fit(train, torch.tensor([1]))
    assert int(model.counts.argmax()) == 2


def test_popularity_of_late_leaves_older_targets_out() -> None:
    day = 86_400.0
    train = log_of([[1, 1, 1, 2, 3, 3]], times=[0, day, 2 * day, 10 * day, 11 * day, 12 * day])
    for days, counts in ((0.0, {1: 3, 2: 1, 3: 2}), (2.0, {2: 1, 3: 2}), (1.5, {3: 2}), (0.5, {3: 1})):
        model = Popularity(PopularitySettings(days=days), V, 3)
        model.fit(train, torch.arange(6))
        assert {item: int(c) for item, c in enumerate(model.counts.ceil().tolist()) if c > 0} == counts


@pytest.mark.parametrize("kind", [partial(LinearSettings, rank=0), EaseSettings, TransitionsSettings])
def test_a_catalogue_that_is_too_large_is_refused_before_anything_is_computed(kind: Any) -> None:
    data = StudentData.of(cycle_data(), "cpu")
    fit_closed_form(kind(max_items=12), EvaluationSettings(ks=(5,)), data)
    with pytest.raises(ConfigError, match="student.max_items = 11: this catalogue has 12 items"):
        fit_closed_form(kind(max_items=11), EvaluationSettings(ks=(5,)), data)


def test_popularity_is_one_number_an_item_and_needs_no_bound() -> None:
    assert not hasattr(PopularitySettings(), "max_items")
    model = Popularity(PopularitySettings(), 1_000_000, 3)
    assert model.counts.numel() == 1_000_000


def test_a_table_shows_the_best_of_the_settings_that_were_tried() -> None:
    data = StudentData.of(cycle_data(train=60), "cpu")
    found = tune_baseline("linear", 3, EvaluationSettings(ks=(1, 5)), data)
    assert [set(line) for line in found.tried] == [{"decay", "l2", "ndcg_5"}] * 3
    best = max(found.tried, key=lambda line: line["ndcg_5"])
    assert found.fit.best_metrics["ndcg_5"] == best["ndcg_5"]
    assert isinstance(found.settings, LinearSettings)
    assert (found.settings.decay, found.settings.l2) == (best["decay"], best["l2"])
    assert len(tune_baseline("linear", 1, EvaluationSettings(ks=(5,)), data).tried) == 1
