"""Which rows a budget buys: hand-made entropies, ranks and points; nesting, seeds, and selectors of one's own."""

from __future__ import annotations

import itertools
import math
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from src.core.errors import ConfigError, TrainingFailed
from src.student.architectures.sasrec import SASRec
from src.student.base import SequenceStudent
from src.teacher.labelling.selection import (
    Diverse,
    Order,
    RowSelectionContext,
    RowSelector,
    StudentPredictions,
    build_selector,
    choose_rows,
    descending,
    farthest_first,
    in_rounds,
    predict_with_student,
    softmax_entropy,
)
from src.teacher.settings import ExportSettings
from tests.fixtures import NUM_ITEMS, WINDOW, cycle_examples, examples_of, student_of

TRAIN = cycle_examples(40, 100)
NAMES = ("random", "most_recent", "student_uncertain", "student_wrong", "diverse")


def answers_of(seed: int, rows: int = 40) -> StudentPredictions:
    """Answers with many ties, and more rows than `Diverse` would have centres in a large split."""
    generator = torch.Generator().manual_seed(seed)
    return StudentPredictions(
        entropy=torch.randint(0, 5, (rows,), generator=generator) / 4,
        target_rank=torch.randint(1, 6, (rows,), generator=generator),
        representation=torch.randn(rows, 3, generator=generator),
    )


def order_of(name: str, seed: int, answers: StudentPredictions) -> list[int]:
    selector = build_selector(ExportSettings(select=name))
    return selector.order(RowSelectionContext(TRAIN, seed, answers)).tolist()


# ------------------------------------------------------------------------------------------ the student's answers


def test_entropy_on_paper() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(2), 0.0, 0.0, -1e4], [50.0, 0.0, 0.0, 0.0]])
    # 1/4 each: log 4; 2/4, 1/4, 1/4, 0: (2/4) log 2 + 2 (1/4) log 4 = (3/2) log 2; one item: 0
    expected = torch.tensor([math.log(4), 1.5 * math.log(2), 0.0])
    torch.testing.assert_close(softmax_entropy(logits), expected, atol=1e-6, rtol=1e-6)


class ByLastItem(SequenceStudent):
    """A student whose logits are a table row, chosen by the history's first item; dropout in training mode."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__(student_of(width=len(table)), len(table), WINDOW, len(table))
        self.scorer.weight = nn.Parameter(table.T.clone())
        nn.init.zeros_(self.scorer.bias)

    def encode(self, history: torch.Tensor, length: torch.Tensor, extra: torch.Tensor | None = None) -> torch.Tensor:
        return self.dropout(torch.nn.functional.one_hot(history[:, 0], self.num_items).float())


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_student_is_asked_row_by_row_in_eval_mode(batch_size: int) -> None:
    table = torch.tensor([[0.0, 0.0, 0.0], [math.log(2), 0.0, 0.0], [0.0, 90.0, 0.0]])
    student = ByLastItem(table).train()
    examples = examples_of([[2], [0], [1]], [0, 2, 0], 100, num_items=3)
    answers = predict_with_student(student, examples, batch_size)
    # 2/4, 1/4, 1/4
    expected = torch.tensor([0.0, math.log(3), 1.5 * math.log(2)])
    torch.testing.assert_close(answers.entropy, expected, atol=1e-6, rtol=1e-6)
    assert answers.target_rank.tolist() == [3, 3, 1]
    assert answers.representation.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert student.training


def test_scores_that_are_not_finite_order_nothing() -> None:
    student = SASRec(student_of(width=4), NUM_ITEMS, WINDOW)
    with torch.no_grad():
        student.scorer.bias[3] = float("nan")
    with pytest.raises(TrainingFailed, match="not finite"):
        predict_with_student(student, TRAIN, 16)


# ------------------------------------------------------------------------------------------ the selectors


def test_uncertain_and_wrong_rows_come_first() -> None:
    entropy = torch.linspace(0, 1, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    answers = StudentPredictions(
        entropy, target_rank=(entropy * 39).round().long() + 1, representation=torch.ones(40, 1)
    )
    expected = entropy.argsort(descending=True).tolist()
    assert order_of("student_uncertain", 1, answers) == expected
    assert order_of("student_wrong", 1, answers) == expected


def test_ties_are_drawn_and_do_not_favour_the_first_rows() -> None:
    values = np.array([1, 3, 1, 3, 1, 3, 1, 3])
    orders = [descending(values, np.random.default_rng(seed)).tolist() for seed in range(20)]
    assert all(set(order[:4]) == {1, 3, 5, 7} for order in orders)
    assert {order[0] for order in orders} == {1, 3, 5, 7}


def test_the_latest_targets_come_first() -> None:
    shuffled = TRAIN.take(np.random.default_rng(0).permutation(40))
    order = build_selector(ExportSettings(select="most_recent")).order(RowSelectionContext(shuffled, 1))
    assert shuffled.timestamp[order].tolist() == list(range(39, -1, -1))


def at_angles(*degrees: float) -> torch.Tensor:
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_each_centre_is_the_farthest_from_those_before() -> None:
    # from 0°: 180° is farthest; then 80° (80° from 0°) before 300° (60° from 0°); then 300°; 10° is nearest to 0°
    found = farthest_first(at_angles(10, 0, 180, 80, 300), count=4, first=1)
    assert found.order.tolist() == [1, 2, 3, 4]
    assert found.nearest[0] == 0
    # squared chord of 10°: 2 − 2 cos 10°
    assert found.distance[0] == pytest.approx(2 - 2 * math.cos(math.radians(10)))
    assert found.distance[1:].tolist() == [-1.0] * 4


def test_a_row_is_chosen_once_even_where_all_are_the_same() -> None:
    assert sorted(farthest_first(torch.ones(5, 1), count=5, first=2).order.tolist()) == [0, 1, 2, 3, 4]


def test_rounds_take_the_farthest_left_of_each_bucket() -> None:
    bucket = np.array([1, 0, 1, 0, 1])
    value = np.array([0.5, 0.1, 0.9, 0.2, 0.7], dtype=np.float32)
    # round 1: bucket 0 → place 3, bucket 1 → place 2; round 2: 1, 4; round 3: 0
    assert in_rounds(bucket, value).tolist() == [3, 2, 1, 4, 0]


@pytest.mark.parametrize("centres", [4, 2048])
def test_diverse_meets_every_group_before_any_a_second_time(centres: int) -> None:
    groups = at_angles(0, 90, 180, 270).repeat_interleave(10, dim=0)
    noise = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)) / 100
    answers = StudentPredictions(torch.zeros(40), torch.ones(40, dtype=torch.int64), 7 * groups + noise)
    order = Diverse(centres).order(RowSelectionContext(TRAIN, 3, answers))
    assert sorted((order[:4] // 10).tolist()) == [0, 1, 2, 3]
    if centres == 4:
        # beyond the centres each round meets every group once
        assert all(sorted((order[at : at + 4] // 10).tolist()) == [0, 1, 2, 3] for at in range(4, 40, 4))


def test_diverse_covers_more_than_chance() -> None:
    answers = answers_of(5)
    points = torch.nn.functional.normalize(answers.representation, dim=1)

    def radius(rows: list[int]) -> float:
        return float(torch.cdist(points, points[rows]).min(dim=1).values.max())

    spread = [radius(order_of("diverse", seed, answers)[:8]) for seed in range(10)]
    chance = [radius(order_of("random", seed, answers)[:8]) for seed in range(10)]
    assert max(spread) < min(chance)


# ------------------------------------------------------------------------------------------ what every selector keeps


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", NAMES)
def test_a_selector_orders_every_row_once_and_repeats_itself(name: str, seed: int) -> None:
    order = order_of(name, seed, answers_of(seed))
    assert sorted(order) == list(range(40))
    assert order_of(name, seed, answers_of(seed)) == order


@pytest.mark.parametrize("name", ["random", "student_uncertain", "student_wrong", "diverse"])
def test_another_seed_is_another_order(name: str) -> None:
    assert len({tuple(order_of(name, seed, answers_of(0))) for seed in range(4)}) > 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", NAMES)
def test_a_larger_budget_contains_every_smaller_one(name: str, seed: int) -> None:
    budgets = (0.03, 0.1, 7.0, 0.3, 39.0, 1.0)
    chosen = [
        choose_rows(TRAIN, ExportSettings(budget=budget, select=name), seed, lambda: answers_of(seed))
        for budget in budgets
    ]
    assert [len(rows) for rows in chosen] == [1, 4, 7, 12, 39, 40]
    assert all((np.diff(rows) > 0).all() for rows in chosen)
    assert all(set(less.tolist()) < set(more.tolist()) for less, more in itertools.pairwise(chosen))


def test_the_budget_takes_the_head_of_the_order() -> None:
    answers = answers_of(2)
    head = sorted(order_of("student_wrong", 4, answers)[:9])
    rows = choose_rows(TRAIN, ExportSettings(budget=9.0, select="student_wrong"), 4, lambda: answers)
    assert rows.tolist() == head


@pytest.mark.parametrize(("budget", "count"), [(0.1, 4), (1.0, 40), (3.0, 3), (40.0, 40)])
def test_the_budget_is_a_share_or_a_number(budget: float, count: int) -> None:
    rows = choose_rows(TRAIN, ExportSettings(budget=budget), seed=1)
    assert len(rows) == len(np.unique(rows)) == count


@pytest.mark.parametrize("budget", [0.01, 41.0])
def test_a_budget_of_nothing_or_more_than_there_is_is_refused(budget: float) -> None:
    with pytest.raises(ConfigError, match=r"teacher.export.budget = .* of 40 training examples"):
        choose_rows(TRAIN, ExportSettings(budget=budget), seed=1)


def test_nobody_asks_a_student_that_nobody_needs() -> None:
    def never() -> StudentPredictions:
        raise AssertionError("asked")

    assert len(choose_rows(TRAIN, ExportSettings(budget=3.0, select="most_recent"), 1, never)) == 3
    with pytest.raises(ConfigError, match="needs a trained student"):
        choose_rows(TRAIN, ExportSettings(budget=3.0, select="diverse"), 1)


# ------------------------------------------------------------------------------------------ a selector of one's own


class Backwards:
    """Stands for a user's own; with ``first`` it is broken."""

    def __init__(self, first: int = 39, needs_student: bool = False) -> None:
        self.first, self.needs_student = first, needs_student

    def order(self, context: RowSelectionContext) -> Order:
        return np.arange(self.first, -1, -1) if not self.needs_student else context.student.target_rank.numpy()


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("my_selectors")

    def factory(settings: ExportSettings) -> RowSelector:
        return Backwards(first=38 if settings.top_n == 1 else 39)

    module.backwards = factory  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_selectors", module)
    return module


@pytest.mark.usefixtures("own")
def test_a_selector_of_ones_own_is_built_from_the_settings() -> None:
    settings = ExportSettings(budget=2.0, select="my_selectors:backwards")
    assert choose_rows(TRAIN, settings, seed=1).tolist() == [38, 39]


@pytest.mark.usefixtures("own")
def test_an_order_that_forgets_a_row_is_refused() -> None:
    settings = ExportSettings(budget=2.0, select="my_selectors:backwards", top_n=1)
    with pytest.raises(ConfigError, match="must order each of 40 rows once"):
        choose_rows(TRAIN, settings, seed=1)


def test_a_selector_that_hides_its_need_is_told() -> None:
    with pytest.raises(ConfigError, match="reads the student's answers → set it to True"):
        Backwards(needs_student=True).order(RowSelectionContext(TRAIN, 1))


@pytest.mark.parametrize("name", ["nowhere_at_all:selector", "src.core.seed:selector", "uncertain"])
def test_one_that_cannot_be_found_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be found .* use random, most_recent, student_uncertain"):
        build_selector(ExportSettings(select=name))
