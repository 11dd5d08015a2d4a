"""DLLM2Rec's terms by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from src.distill.kd_losses import (
    FLOOR,
    confidence_weights,
    consistency_weights,
    embedding_loss,
    importance_weights,
    position_weights,
    ranking_bce,
    weighted_bce,
    weighted_dro,
)


def softplus(value: float) -> float:
    """log(1 + e^value)."""
    return math.log1p(math.exp(value))


def test_position_weights_by_hand() -> None:
    """e^-1, e^-2, e^-3 over their sum; the ratio of neighbours is e."""
    total = math.exp(-1) + math.exp(-2) + math.exp(-3)
    weights = position_weights(3, torch.zeros(1))
    assert weights.tolist() == pytest.approx([math.exp(-k) / total for k in (1, 2, 3)])
    assert float(weights[0] / weights[1]) == pytest.approx(math.e)


def test_confidence_weights_by_hand() -> None:
    """Distances log 1, log 2, log 4: closeness 1, 1/2, 1/4 of 7/4."""
    distances = torch.log(torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64))
    expected = [float(Fraction(4, 7)), float(Fraction(2, 7)), float(Fraction(1, 7))]
    assert confidence_weights(distances)[0].tolist() == pytest.approx(expected, abs=1e-7)


def test_temperature_one_half_squares_the_closeness() -> None:
    distances = torch.log(torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64))
    expected = [16 / 21, 4 / 21, 1 / 21]
    assert confidence_weights(distances, temperature=0.5)[0].tolist() == pytest.approx(expected, abs=1e-7)


def test_far_candidates_weigh_alike_by_the_floor() -> None:
    weights = confidence_weights(torch.tensor([[100.0, 200.0, 400.0, 800.0]]))
    assert weights[0].tolist() == pytest.approx([1 / 4] * 4)


def test_confidence_prefers_the_near() -> None:
    weights = confidence_weights(torch.tensor([[0.1, 1.0, 3.0]]))[0].tolist()
    assert weights == sorted(weights, reverse=True)


def test_consistency_marks_the_students_own_best_items() -> None:
    logits = torch.tensor([[9.0, 1.0, 8.0, 2.0], [0.0, 1.0, 2.0, 3.0]])
    candidates = torch.tensor([[0, 1], [0, 1]])
    expected = torch.tensor([[1 + FLOOR, FLOOR], [FLOOR, FLOOR]])
    assert torch.equal(consistency_weights(candidates, logits), expected)


def test_importance_weights_mix_and_sum_to_one() -> None:
    """gamma 1, 2, 3 of (1/2, 1/2), (1/4, 3/4), (1, 0): 1/2 + 1/2 + 3 = 4 and 1/2 + 3/2 + 0 = 2 of 6."""
    weights = importance_weights(
        torch.tensor([0.5, 0.5]), torch.tensor([[0.25, 0.75]]), torch.tensor([[1.0, 0.0]]), (1.0, 2.0, 3.0)
    )
    assert weights[0].tolist() == pytest.approx([4 / 6, 2 / 6])


def test_ranking_bce_by_hand_in_both_forms() -> None:
    candidates, negative = torch.tensor([[2.0, -1.0]]), torch.tensor([3.0])
    corrected = ranking_bce(candidates, negative, "one_minus_sigmoid")[0].tolist()
    assert corrected == pytest.approx([softplus(-2) + softplus(3), softplus(1) + softplus(3)])
    released = ranking_bce(candidates, negative, "sigmoid_of_one_minus")[0].tolist()
    assert released == pytest.approx([softplus(-2) + softplus(2), softplus(1) + softplus(2)])


@pytest.mark.parametrize("form", ["one_minus_sigmoid", "sigmoid_of_one_minus"])
def test_ranking_bce_of_large_logits_is_finite_with_gradient(form: str) -> None:
    """The published logarithm of a sigmoid is infinite below -88.7 in float32."""
    candidates = torch.tensor([[-500.0]], requires_grad=True)
    negative = torch.tensor([500.0], requires_grad=True)
    loss = ranking_bce(candidates, negative, form)
    loss.sum().backward()
    assert loss.item() == pytest.approx(1000.0, abs=1.5)
    assert candidates.grad is not None
    assert negative.grad is not None
    assert (candidates.grad.item(), negative.grad.item()) == (-1.0, 1.0)


WEIGHTS = torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]], dtype=torch.float64)
LOSSES = torch.tensor([[4.0, 8.0], [2.0, 6.0], [12.0, 4.0]], dtype=torch.float64)


def taught(*rows: float) -> torch.Tensor:
    """1 where a row is taught."""
    return torch.tensor(rows, dtype=torch.float64)


def test_weighted_bce_sums_over_taught_rows_and_divides_by_all() -> None:
    assert weighted_bce(WEIGHTS, LOSSES, taught(1, 1, 1)).tolist() == pytest.approx([(3 + 1 + 3) / 3, (2 + 3 + 3) / 3])
    assert weighted_bce(WEIGHTS, LOSSES, taught(1, 0, 0)).tolist() == pytest.approx([3 / 3, 2 / 3])
    assert weighted_bce(WEIGHTS, LOSSES, taught(0, 0, 0)).tolist() == [0, 0]


def test_per_sample_dro_is_the_mean_of_products() -> None:
    got = weighted_dro(WEIGHTS, LOSSES, taught(1, 1, 1), "per_sample")
    assert got.tolist() == pytest.approx([(3 + 1 + 3) / 3, (2 + 3 + 3) / 3])
    assert weighted_dro(WEIGHTS, LOSSES, taught(0, 1, 0), "per_sample").tolist() == pytest.approx([1 / 3, 3 / 3])


def test_product_dro_is_the_product_of_means() -> None:
    """Column 1: weights 3/2 over 3 rows, losses 18 / 3."""
    got = weighted_dro(WEIGHTS, LOSSES, taught(1, 1, 1), "product")
    assert got.tolist() == pytest.approx([1.5 / 3 * 18 / 3, 1.5 / 3 * 18 / 3])


def test_product_dro_is_the_mean_of_the_released_matrix() -> None:
    """[B, 1] x [B] broadcasts to a [B, B] matrix; its mean is what was trained on."""
    for column in range(2):
        matrix = WEIGHTS[:, column : column + 1] * LOSSES[:, column]
        assert matrix.shape == (3, 3)
        got = weighted_dro(WEIGHTS, LOSSES, taught(1, 1, 1), "product")[column]
        assert float(got) == pytest.approx(float(matrix.mean()))


def test_product_dro_over_taught_rows_by_hand() -> None:
    """Rows 0 and 2: weights (3/4 + 1/4) / 3 times losses (4 + 12) / 2."""
    got = weighted_dro(WEIGHTS, LOSSES, taught(1, 0, 1), "product")
    assert got.tolist() == pytest.approx([(0.75 + 0.25) / 3 * (4 + 12) / 2, (0.25 + 0.75) / 3 * (8 + 4) / 2])
    assert weighted_dro(WEIGHTS, LOSSES, taught(0, 0, 0), "product").tolist() == [0, 0]


@pytest.mark.parametrize("other", [0.0, 1.0])
def test_a_taught_row_weighs_the_same_whatever_the_others_do(other: float) -> None:
    """Row 0's part of the term and of the gradient is W g / B, taught company or not."""
    losses = LOSSES.clone().requires_grad_()
    for term in (
        weighted_bce(WEIGHTS, losses, taught(1, other, other)),
        weighted_dro(WEIGHTS, losses, taught(1, other, other), "per_sample"),
    ):
        (gradient,) = torch.autograd.grad(term.sum(), losses)
        assert gradient[0].tolist() == pytest.approx([0.75 / 3, 0.25 / 3])


def test_mse_embedding_loss_by_hand() -> None:
    student = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    teacher = torch.tensor([[3.0, 2.0], [1.0, 3.0]])
    assert float(embedding_loss(student, teacher, torch.ones(2), "mse")) == pytest.approx((4 / 2 + 10 / 2) / 2)
    assert float(embedding_loss(student, teacher, torch.tensor([0.0, 1.0]), "mse")) == pytest.approx(10 / 2 / 2)


def test_cosine_embedding_loss_by_hand() -> None:
    student = torch.tensor([[3.0, 4.0], [1.0, 0.0], [2.0, 0.0]])
    teacher = torch.tensor([[4.0, 3.0], [0.0, 5.0], [9.0, 0.0]])
    expected = ((1 - 24 / 25) + 1 + 0) / 3
    assert float(embedding_loss(student, teacher, torch.ones(3), "cosine")) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_an_untaught_row_without_an_embedding_sends_no_gradient(kind: str) -> None:
    student = torch.randn(2, 3, requires_grad=True)
    teacher = torch.stack([torch.ones(3), torch.zeros(3)])  # zeros stand where there is no label
    embedding_loss(student, teacher, torch.tensor([1.0, 0.0]), kind).backward()
    assert student.grad is not None
    assert bool(torch.isfinite(student.grad).all())
    assert student.grad[1].tolist() == [0, 0, 0]
    assert bool(student.grad[0].any())
