"""Padding, fingerprints, batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from src.core.data_utils import (
    fingerprint,
    fingerprint_file,
    grouped_batches,
    ordered_batches,
    pad_right,
    shuffled_batches,
)


def test_pad_right_keeps_the_last_items_on_the_left() -> None:
    table = pad_right([[1, 2, 3, 4], [5], []], 3, 9)
    assert table.tolist() == [[2, 3, 4], [5, 9, 9], [9, 9, 9]]
    assert table.dtype == np.int64


def test_pad_right_of_no_rows_keeps_its_width() -> None:
    assert pad_right([], 3, 9).shape == (0, 3)


@dataclass(frozen=True)
class _Options:
    width: int
    folder: Path


def test_half_precision_tensors_have_fingerprints_of_their_own() -> None:
    half = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    assert fingerprint(half) == fingerprint(half.clone())
    # 1.0 and 2.0 in bfloat16: the upper halves of 0x3f800000 and 0x40000000
    bits = np.array([0x3F80, 0x4000], dtype=np.int16)
    assert len({fingerprint(x) for x in (half, half.float(), half.half(), bits, half.flip(0), half[None])}) == 6


def test_equal_content_has_equal_fingerprints() -> None:
    first = fingerprint(np.arange(6), _Options(3, Path("a")), {"x": 1, "y": 2}, {3, 1})
    again = fingerprint(np.arange(6).copy(), _Options(3, Path("a")), {"y": 2, "x": 1}, {1, 3})
    assert first == again
    assert len(first) == 16


def test_a_tensor_and_the_same_array_have_equal_fingerprints() -> None:
    assert fingerprint(torch.arange(4)) == fingerprint(np.arange(4))


@pytest.mark.parametrize(
    "other",
    [
        (np.arange(6).reshape(2, 3),),
        (np.arange(6, dtype=np.int32),),
        (np.arange(5),),
        (np.array([0, 1, 2, 3, 4, 6]),),
        (np.arange(3), np.arange(3, 6)),
        ([0, 1, 2, 3, 4, 5],),
    ],
)
def test_another_shape_type_value_or_division_has_another_fingerprint(other: tuple[object, ...]) -> None:
    assert fingerprint(np.arange(6)) != fingerprint(*other)


def test_parts_do_not_run_into_each_other() -> None:
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint(12, 3) != fingerprint(1, 23)


def test_what_cannot_be_identified_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot fingerprint"):
        fingerprint(object())


def test_fingerprint_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"same")
    second.write_bytes(b"same")
    assert fingerprint_file(first) == fingerprint_file(second)
    second.write_bytes(b"Same")
    assert fingerprint_file(first) != fingerprint_file(second)


def test_shuffled_batches_hold_every_row_once() -> None:
    batches = list(shuffled_batches(10, 4, torch.Generator().manual_seed(1), torch.device("cpu")))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    rows = torch.cat(batches).tolist()
    assert sorted(rows) == list(range(10))
    assert rows != list(range(10))


def test_each_epoch_has_its_own_order() -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = (
        torch.cat(list(shuffled_batches(50, 8, generator, torch.device("cpu")))).tolist() for _ in range(2)
    )
    assert first != second


def test_ordered_batches_drop_no_row() -> None:
    assert [batch.tolist() for batch in ordered_batches(5, 2)] == [[0, 1], [2, 3], [4]]


COST = torch.tensor([5, 1, 4, 1, 3, 9, 2, 6, 5, 3])


def grouped(seed: int, window: int, rows: int = 10, size: int = 3) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    batches = grouped_batches(rows, size, generator, torch.device("cpu"), cost=COST[:rows], window=window)
    return [batch.tolist() for batch in batches]


@pytest.mark.parametrize("window", [1, 2, 50])
def test_grouped_batches_hold_every_row_once_the_costliest_first(window: int) -> None:
    batches = grouped(1, window)
    assert sorted(map(len, batches)) == [1, 3, 3, 3]
    assert sorted(row for batch in batches for row in batch) == list(range(10))
    assert 5 in batches[0], "the row of cost 9"


def test_in_one_window_batches_are_slices_of_the_sorted_rows() -> None:
    # costs sorted: 9 6 5 | 5 4 3 | 3 2 1 | 1
    assert sorted(sorted(COST[batch].tolist(), reverse=True) for batch in grouped(1, 50)) == [
        [1],
        [3, 2, 1],
        [5, 4, 3],
        [9, 6, 5],
    ]


def test_grouped_batches_follow_their_generator_alone() -> None:
    assert grouped(1, 2) == grouped(1, 2)
    assert len({str(grouped(seed, 2)) for seed in range(5)}) == 5
    generator = torch.Generator().manual_seed(1)
    first, second = (
        [batch.tolist() for batch in grouped_batches(10, 3, generator, torch.device("cpu"), cost=COST)]
        for _ in range(2)
    )
    assert first != second, "each epoch has its own order"


def test_fewer_rows_than_a_batch_are_one_batch() -> None:
    assert [sorted(batch) for batch in grouped(1, 50, rows=2)] == [[0, 1]]
