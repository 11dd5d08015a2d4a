"""The teacher check: figures on paper, and a verdict that follows its rule."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from src.core.metrics import ndcg
from src.data.tensor_examples import TensorExamples
from src.evaluation.paired import user_interval
from src.student.architectures.sasrec import SASRec
from src.student.evaluator import rank_examples
from src.student.settings import EvaluationSettings
from src.teacher.labelling.labels import rank
from src.teacher.operations.teacher_check import (
    TOP,
    RankedExamples,
    TeacherCheck,
    check_teacher,
    compare_rankings,
    list_coverage,
    shared,
    student_ranker,
    teacher_ranker,
)
from tests.fixtures import NUM_ITEMS, WINDOW, cycle_examples, student_of
from tests.teacher.builders import CPU, teacher_of

V = 100
INTERVAL = partial(user_interval, seed=0)


def lists(*firsts: int) -> Tensor:
    """Top 20 that are 20 ids in a row, from each of these."""
    return torch.tensor(firsts).unsqueeze(1) + torch.arange(TOP)


def ranking(ranks: list[int], *firsts: int, valid: list[bool] | None = None) -> RankedExamples:
    return RankedExamples(torch.tensor(ranks), lists(*firsts), None if valid is None else torch.tensor(valid))


def compared(teacher: RankedExamples, student: RankedExamples, num_items: int = V) -> TeacherCheck:
    """Every example of a user of its own."""
    return compare_rankings(teacher, student, np.arange(len(teacher.ranks)), num_items, INTERVAL)


def test_the_figures_on_paper() -> None:
    teacher = ranking([1, 3, 50, 7], 0, 10, 40, 60, valid=[True, True, False, True])
    student = ranking([3, 1, 21, 7], 0, 15, 60, 65)
    check = compared(teacher, student)
    # 1/log2(2) = 1, 1/log2(4) = 1/2, 1/log2(8) = 1/3; below 20: 0
    assert check.teacher_ndcg == pytest.approx((1 + 1 / 2 + 0 + 1 / 3) / 4)
    assert check.student_ndcg == pytest.approx((1 / 2 + 1 + 0 + 1 / 3) / 4)
    assert check.oracle_ndcg == pytest.approx((1 + 1 + 0 + 1 / 3) / 4)
    assert check.oracle_gain == pytest.approx((7 / 12 - 11 / 24) / (11 / 24))
    # 20, 15, 0 and 15 of 20 in common
    assert check.overlap == pytest.approx((20 + 15 + 0 + 15) / 80)
    assert (check.teacher_better, check.ties, check.student_better) == (1 / 4, 1 / 4, 2 / 4)
    assert (check.only_teacher, check.only_student) == (0, 0)
    assert check.valid_ratio == 3 / 4
    # teacher 0..29, 40..79: 70 of 100; student 0..34, 60..84: 60
    assert (check.teacher_coverage, check.student_coverage) == (70 / 100, 60 / 100)
    assert (check.examples, check.top) == (4, 20)


def test_who_alone_has_the_target_in_its_list() -> None:
    check = compared(ranking([20, 21, 5, 90, 20], *[0] * 5), ranking([21, 20, 5, 91, 30], *[0] * 5))
    assert (check.only_teacher, check.only_student) == (2 / 5, 1 / 5)


def test_an_item_head_always_answers_with_an_item() -> None:
    assert compared(ranking([1], 0), ranking([1], 0)).valid_ratio == 1


def test_answers_that_are_no_items_are_in_no_list() -> None:
    first, second = torch.tensor([[3, -1, 5], [-1, -1, -1]]), torch.tensor([[-1, 5, 4], [-1, 0, 1]])
    assert shared(first, second).tolist() == [1, 0]
    assert list_coverage(first, 8) == 2 / 8


def test_a_small_catalogue_shortens_the_lists() -> None:
    ranks, top = torch.tensor([12]), torch.arange(12).unsqueeze(0)
    check = compared(RankedExamples(ranks, top), RankedExamples(ranks, top.flip(1)), 12)
    assert (check.top, check.overlap, check.teacher_coverage) == (12, 1, 1)
    assert check.teacher_ndcg == pytest.approx(1 / math.log2(13))


# ------------------------------------------------------------------------------------------ the interval


def test_the_interval_of_what_does_not_vary_is_a_point() -> None:
    assert user_interval(np.full(30, 0.25), np.arange(30), seed=1) == (0.25, 0.25)


def test_the_interval_is_about_two_standard_errors_wide_and_repeats_itself() -> None:
    values, user = np.array([0.0, 1.0] * 200), np.arange(400)
    low, high = user_interval(values, user, seed=1)
    # standard error of a fair coin's mean over 400: (1/2) / 20
    assert (low, high) == pytest.approx((1 / 2 - 1.96 / 40, 1 / 2 + 1.96 / 40), abs=0.006)
    assert user_interval(values, user, seed=1) == (low, high)
    assert user_interval(values**2 + user, user, seed=1) != user_interval(values**2 + user, user, seed=2)


def test_examples_of_one_user_do_not_count_as_so_many() -> None:
    values = np.array([0.0, 1.0] * 200)
    # 20 users with 20 equal examples each: the standard error of 20 coins, (1/2) / sqrt(20)
    low, high = user_interval(np.sort(values), np.repeat(np.arange(20), 20), seed=1)
    assert (low, high) == pytest.approx((1 / 2 - 1.96 / 80**0.5, 1 / 2 + 1.96 / 80**0.5), abs=0.03)


def test_examples_are_resampled_where_the_source_names_no_users() -> None:
    values = np.arange(40.0)
    assert user_interval(values, np.full(40, -1), seed=1) == user_interval(values, np.arange(40), seed=1)
    assert user_interval(np.array([0.25]), np.array([7]), seed=1) == (0.25, 0.25)


# ------------------------------------------------------------------------------------------ the verdict

FOUND = TeacherCheck(
    examples=500,
    top=20,
    teacher_ndcg=0.12,
    student_ndcg=0.1,
    interval=(0.01, 0.03),
    oracle_ndcg=0.15,
    overlap=0.5,
    teacher_better=0.6,
    ties=0.1,
    student_better=0.3,
    only_teacher=0.2,
    only_student=0.1,
    valid_ratio=1.0,
    teacher_coverage=0.4,
    student_coverage=0.3,
)
WORSE = replace(FOUND, teacher_ndcg=0.06, interval=(-0.06, -0.02))


@pytest.mark.parametrize(
    ("check", "verdict"),
    [
        (FOUND, "likely"),
        (replace(FOUND, interval=(-0.001, 0.03)), "open"),
        (replace(FOUND, interval=(-0.001, 0.001), overlap=0.96), "unlikely"),
        (replace(FOUND, overlap=0.96), "likely"),
        (replace(WORSE, oracle_ndcg=0.133), "unlikely"),
        (replace(WORSE, oracle_ndcg=0.134), "open"),
        (replace(WORSE, student_ndcg=0.0, oracle_ndcg=0.0), "unlikely"),
        (replace(WORSE, student_ndcg=0.0, oracle_ndcg=0.01), "open"),
    ],
)
def test_the_verdict_follows_its_rule(check: TeacherCheck, verdict: str) -> None:
    assert check.verdict == verdict
    assert (
        check.sentence().split(":")[0]
        == {
            "likely": "Distilling from this teacher is likely to help",
            "open": "Whether distilling from this teacher helps is open",
            "unlikely": "Distilling from this teacher is unlikely to help",
        }[verdict]
    )


def test_the_sentence_holds_the_figures_it_rests_on() -> None:
    assert FOUND.sentence() == (
        "Distilling from this teacher is likely to help: on 500 held-out examples its NDCG@20 is 0.1200 and the "
        "student's 0.1000 (95 % interval of the difference +0.0100 to +0.0300), and it ranks the target better than "
        "the student in 60% of them, while a perfect choice between the two would reach 0.1500."
    )
    assert "96% of their top 20 are the same items" in replace(WORSE, overlap=0.96).sentence()


def test_it_can_be_written_as_json() -> None:
    written = json.loads(json.dumps(FOUND.as_dict(), allow_nan=False))
    assert written["oracle_gain"] == pytest.approx(0.5)
    assert written["interval"] == [0.01, 0.03]
    assert (written["verdict"], written["sentence"]) == ("likely", FOUND.sentence())
    assert replace(FOUND, student_ndcg=0.0).as_dict()["oracle_gain"] is None


def test_a_teacher_that_knows_more_is_likely_to_help_and_one_that_guesses_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    tops = torch.randint(0, V - TOP, (200,), generator=generator).unsqueeze(1) + torch.arange(TOP)
    others = torch.randint(0, V - TOP, (200,), generator=generator).unsqueeze(1) + torch.arange(TOP)
    good = RankedExamples(torch.randint(1, 4, (200,), generator=generator), tops)
    fair = RankedExamples(torch.randint(1, 15, (200,), generator=generator), others)
    blind = RankedExamples(torch.full((200,), V), tops)
    examples = cycle_examples(200, 0)
    verdicts = [
        check_teacher(lambda _, one=teacher: one, lambda _: fair, examples, V, INTERVAL).verdict  # type: ignore[misc]
        for teacher in (good, fair, blind)
    ]
    assert verdicts == ["likely", "unlikely", "unlikely"]


def test_no_example_is_no_check() -> None:
    with pytest.raises(ValueError, match="at least one example"):
        check_teacher(lambda _: ranking([1], 0), lambda _: ranking([1], 0), cycle_examples(0, 0), V, INTERVAL)


# ------------------------------------------------------------------------------------------ the rankers


@pytest.mark.parametrize("mask_history", [False, True])
def test_the_rankers_rank_as_the_evaluations_do(llama: Path, mask_history: bool) -> None:
    teacher, examples = teacher_of(llama), cycle_examples(15, 0)
    torch.manual_seed(5)
    student = SASRec(student_of(width=8, dropout=0.9), NUM_ITEMS, WINDOW).train()
    theirs = student_ranker(student, 4, mask_history)(examples)
    assert student.training
    ours = teacher_ranker(teacher, 4, mask_history)(examples)
    columns = TensorExamples.of(examples, "cpu")
    settings = EvaluationSettings(mask_history=mask_history)
    assert torch.equal(theirs.ranks, rank_examples(student.eval(), columns, settings))
    assert torch.equal(ours.ranks, rank(teacher, TensorExamples.of(examples, CPU), 4, mask_history))
    for found in (ours, theirs):
        places = (found.top == columns.target.unsqueeze(1)).nonzero()
        # the list is the ranking: the target stands in it at its rank
        assert torch.equal(places[:, 1] + 1, found.ranks)
    check = check_teacher(lambda _: ours, lambda _: theirs, examples, NUM_ITEMS, INTERVAL)
    assert check.teacher_ndcg == pytest.approx(float(ndcg(ours.ranks, 20).mean()))
