"""The measured rate and what it promises, by a clock of our own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from src.core.timing import duration
from src.teacher.operations.throughput import MEASURED, WARM, ThroughputMeter


class Half:
    """Any loss."""

    def loss(self, rows: Tensor) -> Tensor:
        """0.5."""
        return torch.tensor(0.5)


def told(past: int, taken: int, micro: int = 1) -> list[str]:
    """A run of 100 steps of 30 tokens, one second each, after ``past`` steps that another process made."""
    said, now = list[str](), [0.0]
    cost = torch.tensor([10, 20])
    pace = ThroughputMeter(Half(), cost, steps=100, tokens=3000, tell=said.append, clock=lambda: now[0])
    for _ in range(past):
        pace.step_done()
    for _ in range(taken):
        now[0] += 1
        for rows in torch.tensor([0, 1]).split(micro):
            assert pace.loss(rows).item() == 0.5
        pace.step_done()
    return said


@pytest.mark.parametrize("micro", [1, 2])
def test_the_rate_is_told_once_and_the_rest_follows_from_it(micro: int) -> None:
    # 30 tokens a second; 88 of 100 steps are left
    assert told(0, WARM + MEASURED - 1, micro) == []
    expected = "30 tokens a second over 10 steps: about 88 seconds of training left, evaluation not counted"
    assert told(0, 50, micro) == [expected]


def test_steps_made_before_are_neither_measured_nor_left() -> None:
    assert told(60, 20) == [
        "30 tokens a second over 10 steps: about 28 seconds of training left, evaluation not counted"
    ]


@pytest.mark.parametrize(
    ("seconds", "said"), [(3.4, "3 seconds"), (119, "119 seconds"), (600, "10 minutes"), (36000, "10.0 hours")]
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said
