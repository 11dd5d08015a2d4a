"""Work in parts, halved when the device is out of memory."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from src.core.errors import OutOfMemory
from src.core.memory import in_parts


class Work:
    """Keeps its rows, where no more than so many of them are asked at once."""

    def __init__(self, most: int) -> None:
        self.most, self.rows, self.asked = most, list[int](), list[int]()

    def __call__(self, rows: Tensor) -> None:
        """As asked."""
        self.asked.append(len(rows))
        if len(rows) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. See the documentation")
        self.rows += rows.tolist()


@pytest.mark.parametrize(
    ("most", "asked"), [(8, [8, 8, 4]), (3, [8, *[4], *[2] * 10]), (1, [8, 4, 2, *[1] * 20]), (7, [8, *[4] * 5])]
)
def test_all_rows_are_asked_in_their_order(most: int, asked: list[int], caplog: pytest.LogCaptureFixture) -> None:
    work = Work(most)
    in_parts(torch.arange(20) + 100, 8, work, "export.batch_size", "buy a larger one")
    assert work.rows == list(range(100, 120))
    assert work.asked == asked
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    told = "out of memory (CUDA out of memory): going on with 4 rows at once; export.batch_size was 8"
    assert warnings == ([] if most == 8 else [told])


def test_a_row_that_does_not_fit_alone_is_an_error() -> None:
    with pytest.raises(OutOfMemory, match=r"a single row at once \(CUDA out of memory\): buy a larger one"):
        in_parts(torch.arange(3), 2, Work(0), "export.batch_size", "buy a larger one")


def test_a_short_last_part_is_halved_itself() -> None:
    asked = list[int]()

    def work(rows: Tensor) -> None:
        asked.append(len(rows))
        if len(asked) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    in_parts(torch.arange(11), 8, work, "export.batch_size", "")
    assert asked == [8, 3, 1, 1, 1]
