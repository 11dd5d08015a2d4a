"""Which settings can be trained in micro-batches: those whose loss is a mean over rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from src.core.errors import ConfigError
from src.core.training import LoopSettings
from src.distill.kd_losses import weighted_dro
from src.distill.preflight import check_distill_settings
from src.distill.settings import ActiveSettings, DistillSettings
from tests.fixtures import student_of

WHOLE, CUT, ADAPT = LoopSettings(), LoopSettings(micro_batch_size=64), LoopSettings(adapt_micro_batch=True)


def test_the_product_of_two_batches_is_not_that_of_both_together() -> None:
    """Weights 1, 3 and DRO 2, 4: the product is 2 · 3, its halves' mean (1 · 2 + 3 · 4) / 2; row by row they agree."""
    weights, dro, taught = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [4.0]]), torch.ones(2)

    def whole_and_halves(weighting: str) -> tuple[float, float]:
        halves = [weighted_dro(weights[[row]], dro[[row]], taught[[row]], weighting) for row in range(2)]
        return float(weighted_dro(weights, dro, taught, weighting)), float(sum(halves)) / 2

    assert whole_and_halves("product") == (6, 7)
    assert whole_and_halves("per_sample") == (7, 7)


@pytest.mark.parametrize(
    ("loop", "step"),
    [(CUT, "student.loop.micro_batch_size=0"), (ADAPT, "student.loop.adapt_micro_batch=false")],
)
def test_the_product_is_refused_in_parts(loop: LoopSettings, step: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_distill_settings(
            DistillSettings(dro_weighting="product"), ActiveSettings(), student_of(loop=loop), lambda: 30
        )
    (problem,) = caught.value.problems
    assert problem is not None
    assert step in str(problem)
    assert "another loss" in str(problem)


@pytest.mark.parametrize(
    ("changes", "loop"),
    [
        ({}, WHOLE),
        ({}, LoopSettings(batch_size=64, micro_batch_size=64)),
        ({"dro_weighting": "per_sample"}, CUT),
        ({"alpha": 0.0}, CUT),
        ({"lam": 0.0}, CUT),
    ],
)
def test_what_is_the_same_loss_is_allowed(changes: dict[str, Any], loop: LoopSettings) -> None:
    check_distill_settings(
        DistillSettings(**{"dro_weighting": "product", **changes}), ActiveSettings(), student_of(loop=loop), lambda: 30
    )
