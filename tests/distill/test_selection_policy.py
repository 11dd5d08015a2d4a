"""The three policies by hand."""

from __future__ import annotations

import math

import pytest
import torch

from src.core.errors import ConfigError
from src.distill.selection_policy import (
    GroundTruthError,
    KLDivergence,
    SelectionContext,
    TeachAll,
    build_policy,
    teacher_student_kl,
)
from src.distill.settings import ActiveSettings


def context_of(logits: list[list[float]], labelled: list[bool], temperature: float = 1.0) -> SelectionContext:
    """Target 0; candidates 0 and 1, of which the teacher thinks 3/4 and 1/4 at temperature one."""
    rows = len(logits)
    return SelectionContext(
        student_logits=torch.tensor(logits, dtype=torch.float64),
        target=torch.zeros(rows, dtype=torch.int64),
        candidates=torch.tensor([[0, 1]] * rows),
        distances=torch.tensor([[math.log(4 / 3), math.log(4)]] * rows, dtype=torch.float64),
        labelled=torch.tensor(labelled),
        temperature=temperature,
    )


def test_all_is_every_labelled_row() -> None:
    assert TeachAll().select(context_of([[0.0, 0.0]] * 3, [True, False, True])).tolist() == [True, False, True]


def kl(logits: list[float], temperature: float = 1.0) -> float:
    """Of one row of `context_of`."""
    context = context_of([logits], [True], temperature)
    return teacher_student_kl(context.student_logits, context.candidates, context.distances, temperature).item()


def test_kl_by_hand() -> None:
    """Teacher (3/4, 1/4), student (1/2, 1/2): 3/4 log(3/2) + 1/4 log(1/2); items outside the top two do not count."""
    expected = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    assert kl([5.0, 5.0, 100.0]) == pytest.approx(expected)
    assert kl([math.log(3), 0.0, 7.0]) == pytest.approx(0.0, abs=1e-12)


def test_kl_is_of_the_teacher_against_the_student_and_not_the_reverse() -> None:
    """Student (1/4, 3/4): 3/4 log 3 + 1/4 log(1/3) = log(3) / 2, the same backwards; student (9/10, 1/10) tells."""
    assert kl([0.0, math.log(3)]) == pytest.approx(math.log(3) / 2)
    assert kl([math.log(9), 0.0]) == pytest.approx(3 / 4 * math.log(5 / 6) + 1 / 4 * math.log(5 / 2))


def test_temperature_sharpens_the_teacher() -> None:
    """At 1/2 the teacher is (9/10, 1/10)."""
    assert kl([math.log(9), 0.0], temperature=0.5) == pytest.approx(0.0, abs=1e-12)


def test_kl_divergence_teaches_from_the_threshold_on() -> None:
    context = context_of([[5.0, 5.0], [math.log(3), 0.0], [0.0, math.log(3)], [0.0, 50.0]], [True, True, True, False])
    threshold = teacher_student_kl(context.student_logits, context.candidates, context.distances, 1.0)[0].item()
    assert KLDivergence(threshold).select(context).tolist() == [True, False, True, False]
    assert KLDivergence(threshold + 1e-9).select(context).tolist() == [False, False, True, False]


def test_ground_truth_error_teaches_rows_that_rank_worse_than_the_threshold() -> None:
    """Ranks of item 0: 1, 2, 3 (a tie counts against it)."""
    context = context_of([[9.0, 1.0, 2.0], [1.0, 0.0, 2.0], [1.0, 1.0, 2.0]], [True, True, True])
    assert GroundTruthError(0).select(context).tolist() == [True, True, True]
    assert GroundTruthError(1).select(context).tolist() == [False, True, True]
    assert GroundTruthError(2).select(context).tolist() == [False, False, True]
    assert GroundTruthError(3).select(context).tolist() == [False, False, False]


def test_settings_name_the_policy_and_its_threshold() -> None:
    assert isinstance(build_policy(ActiveSettings()), TeachAll)
    assert build_policy(ActiveSettings(policy="kl_divergence", kl_threshold=0.25)) == KLDivergence(0.25)
    assert build_policy(ActiveSettings(policy="ground_truth_error", rank_threshold=7)) == GroundTruthError(7)


def test_a_policy_that_nobody_registered_is_refused() -> None:
    settings = ActiveSettings()
    object.__setattr__(settings, "policy", "curious")
    with pytest.raises(ConfigError, match="ground_truth_error"):
        build_policy(settings)
