"""Work in parts, halved when the device is out of memory."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from src.core.errors import OutOfMemory
from src.core.memory import in_parts, is_out_of_memory, torch_reason


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


SAID = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
    OutOfMemory("the device is out of memory in a training step"),
]
OTHERS = [
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"),
    ValueError("CUDA error: out of memory"),
    KeyError("out of memory"),
]


@pytest.mark.parametrize("error", SAID, ids=str)
def test_out_of_memory_is_known_whoever_says_it(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("error", SAID[:-1], ids=str)
def test_parts_are_halved_whoever_says_it(error: Exception) -> None:
    asked = list[int]()

    def work(rows: Tensor) -> None:
        asked.append(len(rows))
        if len(rows) > 2:
            raise error

    in_parts(torch.arange(4), 4, work, "export.batch_size", "")
    assert asked == [4, 2, 2]


def test_other_errors_go_through() -> None:
    def work(rows: Tensor) -> None:
        raise OTHERS[0]

    with pytest.raises(torch.AcceleratorError, match="device-side assert"):
        in_parts(torch.arange(4), 4, work, "export.batch_size", "")


def test_the_reason_is_a_sentence() -> None:
    assert [torch_reason(error) for error in SAID[:2]] == ["CUDA out of memory", "CUDA error: out of memory"]
