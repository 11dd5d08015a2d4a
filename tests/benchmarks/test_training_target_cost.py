"""The benchmark at a small size: every loss is trained, and the table has its cells in place."""

from __future__ import annotations

import pytest

from benchmarks.training_target_cost import LOSSES, Cost, cost, table


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_measured(loss: str) -> None:
    found = cost(400, loss, seconds=0.0, ema=0.9, evaluated=16)
    assert found.microseconds > 0
    assert found.evaluation > 0


def test_the_table() -> None:
    costs = {("ce", 10): Cost(1234.4, 2**30), ("ce", 20): Cost(1.0, 2**29), ("sampled", 10): Cost(2.0, 0, 1.26)}
    costs["sampled", 20] = Cost(3.0, 2**31)
    assert table(costs, [10, 20]) == [
        "| loss | V = 10 | V = 20 |",
        "|---|---|---|",
        "| ce | 1,234 µs, 1.00 GB | 1 µs, 0.50 GB |",
        "| sampled | 2 µs, 0.00 GB, evaluation 1.3 s | 3 µs, 2.00 GB |",
    ]
