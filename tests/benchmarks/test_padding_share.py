"""The benchmark's arithmetic."""

from __future__ import annotations

import pytest
import torch

from benchmarks.padding_share import padding_share, passes
from src.core.data_utils import ordered_batches


def test_the_share_of_padding_by_hand() -> None:
    # 2 × 4 and 1 × 3 places, 9 of which hold a token
    assert padding_share([torch.tensor([4, 2]), torch.tensor([3])]) == pytest.approx(2 / 11)


def test_a_pass_is_a_part_of_a_batch() -> None:
    counts = torch.tensor([4, 2, 3])
    seen = list(passes(counts, lambda rows, size, *_: ordered_batches(rows, size), 2, 1))
    assert [part.tolist() for part in seen] == [[4], [2], [3]] * 3
    assert padding_share(seen) == 0
