"""The student's losses by hand, and DRO where float32 is easily lost."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch
from torch import Tensor

from src.student.losses import bce_loss, ce_loss, dro_at, dro_terms, propensity
from src.student.objectives import main_loss
from tests.fixtures import student_of


def softplus(value: float) -> float:
    """log(1 + e^value)."""
    return math.log1p(math.exp(value))


def test_propensity_by_hand() -> None:
    """Counts 0, 1, 3: (1, 2, 4) / 7 to the power 1/20."""
    p = propensity(torch.tensor([0, 1, 3]))
    assert p.dtype == torch.float64
    assert p.tolist() == pytest.approx([(n / 7) ** (1 / 20) for n in (1, 2, 4)], rel=1e-15)


def test_propensity_of_no_counts_is_uniform() -> None:
    assert propensity(torch.zeros(4, dtype=torch.int64)).tolist() == pytest.approx([(1 / 4) ** (1 / 20)] * 4)


def test_bce_by_hand() -> None:
    loss = bce_loss(torch.tensor([2.0, 0.0]), torch.tensor([[1.0, -1.0], [0.0, 3.0]]))
    positive = (softplus(-2) + softplus(0)) / 2
    negative = (softplus(1) + softplus(-1) + softplus(0) + softplus(3)) / 4
    assert float(loss) == pytest.approx((positive + negative) / 2, rel=1e-6)


def test_more_negatives_do_not_outweigh_the_positive() -> None:
    positive = torch.tensor([1.0])
    one, many = bce_loss(positive, torch.zeros(1, 1)), bce_loss(positive, torch.zeros(1, 50))
    assert float(one) == pytest.approx(float(many))


def test_bce_of_large_logits_is_finite() -> None:
    assert float(bce_loss(torch.tensor([-1000.0]), torch.tensor([[1000.0]]))) == 1000.0
    assert float(bce_loss(torch.tensor([1000.0]), torch.tensor([[-1000.0]]))) == 0.0


def test_ce_by_hand() -> None:
    logits = torch.log(torch.tensor([[1.0, 2.0, 5.0], [1.0, 1.0, 2.0]]))
    assert float(ce_loss(logits, torch.tensor([2, 0]))) == pytest.approx(-(math.log(5 / 8) + math.log(1 / 4)) / 2)


def test_main_loss_follows_the_setting() -> None:
    logits, target, negatives = torch.randn(3, 6), torch.tensor([0, 1, 2]), torch.tensor([[3, 4], [4, 5], [5, 3]])
    ce = main_loss(logits, target, student_of(loss="ce"), negatives)
    assert torch.equal(ce, ce_loss(logits, target))
    bce = main_loss(logits, target, student_of(loss="bce"), negatives)
    assert torch.equal(bce, bce_loss(logits[torch.arange(3), target], logits.gather(1, negatives)))


def plain_dro(logits: Tensor, p: Tensor, beta: float, items: Tensor) -> Tensor:
    """The formula as it is printed (golden README §1c)."""
    everything = (p * logits**2 / beta).exp().sum(dim=1, keepdim=True)
    own, weight = logits.gather(1, items), p[items]
    return (everything - (weight * own**2 / beta).exp() + (weight * (own - 1) ** 2 / beta).exp() + 1e-24).log()


def test_dro_by_hand() -> None:
    """p = 1, x = (0, 1), beta = 1: for item 1 log(1 + e - e + 1), for item 0 log(1 + e - 1 + e)."""
    terms = dro_terms(torch.tensor([[0.0, 1.0]]), torch.ones(2), 1.0)
    assert dro_at(terms, torch.tensor([[1, 0]]))[0].tolist() == pytest.approx([math.log(2), math.log(2 * math.e)])


@pytest.mark.parametrize("beta", [0.25, 1.0, 3.0])
def test_dro_of_any_items_is_the_printed_formula(beta: float) -> None:
    torch.manual_seed(0)
    # small enough that the printed formula, which subtracts, still holds in float64
    logits, p = torch.randn(5, 9, dtype=torch.float64) * beta**0.5, torch.rand(9, dtype=torch.float64) / 2 + 0.5
    items = torch.randint(0, 9, (5, 4))
    items[:, 0] = (p * logits**2).argmax(dim=1)  # the item that dominates the sum is asked for, too
    got = dro_at(dro_terms(logits, p, beta), items)
    assert torch.allclose(got, plain_dro(logits, p, beta, items), rtol=1e-10, atol=1e-10)


def exact_dro(row: list[float], p: list[float], item: int) -> tuple[float, list[float]]:
    """Value and gradient in 200-digit arithmetic, so that nothing overflows or cancels."""
    with localcontext() as context:
        context.prec = 200
        x, weight = [Decimal(value) for value in row], [Decimal(value) for value in p]
        parts = [(w * value * value).exp() for w, value in zip(weight, x, strict=True)]
        shifted = (weight[item] * (x[item] - 1) ** 2).exp()
        total = sum(parts) - parts[item] + shifted
        slopes = [2 * w * value * part / total for w, value, part in zip(weight, x, parts, strict=True)]
        slopes[item] = 2 * weight[item] * (x[item] - 1) * shifted / total
        return float(total.ln()), [float(slope) for slope in slopes]


@pytest.mark.parametrize("largest", [13.0, 50.0, 200.0, -200.0])
@pytest.mark.parametrize("which", ["argmax", "small", "equal"])
def test_dro_in_float32_keeps_value_and_gradient(largest: float, which: str) -> None:
    """Subtracting from the shared sum is wrong by 0.3 at 13, overflows at 50. Here both stay right, argmax included."""
    row, p = [0.5, largest, -1.5, 2.0, 0.0], [0.75, 0.875, 0.625, 0.5, 0.75]
    if which == "equal":  # two items share the largest exponent; asking for one leaves the other
        row[3], p[3] = largest, p[1]
    item = 0 if which == "small" else 1
    logits = torch.tensor([row], requires_grad=True)
    value = dro_at(dro_terms(logits, torch.tensor(p), 1.0), torch.tensor([[item]]))
    value.sum().backward()
    want, slopes = exact_dro(row, p, item)
    assert value.item() == pytest.approx(want, rel=1e-5, abs=1e-5)
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx(slopes, rel=2e-4, abs=2e-4)


def test_dro_of_constant_logits_has_a_finite_gradient() -> None:
    logits = torch.zeros(2, 4, requires_grad=True)
    dro_at(dro_terms(logits, torch.ones(4), 1.0), torch.tensor([[0], [3]])).sum().backward()
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())


def test_dro_maps_over_a_population_of_students() -> None:
    """No Python branch on a value: `torch.func.vmap` adds an axis of students."""
    torch.manual_seed(0)
    population, p, items = torch.randn(3, 4, 6), torch.rand(6), torch.randint(0, 6, (4, 2))
    mapped = torch.func.vmap(lambda logits: dro_at(dro_terms(logits, p, 1.0), items))(population)
    alone = torch.stack([dro_at(dro_terms(logits, p, 1.0), items) for logits in population])
    assert torch.allclose(mapped, alone)
