"""Padding, fingerprints, and batches of row numbers: the small change of every room."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def pad_right(sequences: Sequence[Sequence[int]], width: int, padding_id: int) -> NDArray[np.int64]:
    """The last ``width`` ids of each sequence, left-aligned, padded on the right: ``[N, width]`` int64."""
    table = np.full((len(sequences), width), padding_id, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        tail = list(sequence)[-width:]
        table[row, : len(tail)] = tail
    return table


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        if value.dtype == torch.bfloat16:
            # NumPy has no such type: its bits, marked as what they are
            digest.update(b"bfloat16:")
            value = value.view(torch.int16)
        value = value.numpy()
    if isinstance(value, np.ndarray):
        # the shape is a part: the same bytes in another shape are other data
        digest.update(f"array:{value.dtype.str}:{value.shape}:".encode())
        digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8))  # without a copy
        return
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    digest.update(json.dumps(value, sort_keys=True, ensure_ascii=False, default=_plain).encode())


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"cannot fingerprint a {type(value).__name__}")


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits that identify arrays, dataclasses and plain data; equal content gives an equal value."""
    digest = hashlib.sha256()
    for part in parts:
        _feed(digest, part)
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def fingerprint_file(path: Path) -> str:
    """16 hexadecimal digits that identify a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:16]


def shuffled_batches(rows: int, size: int, generator: torch.Generator, device: torch.device) -> Iterator[Tensor]:
    """All row numbers in a new random order, in batches of ``size``; the last one may be smaller.

    The order is drawn on the generator's device, so a CPU generator gives the same order on every accelerator.
    """
    order = torch.randperm(rows, generator=generator, device=generator.device).to(device)
    yield from order.split(size)


def grouped_batches(
    rows: int, size: int, generator: torch.Generator, device: torch.device, *, cost: Tensor, window: int = 50
) -> Iterator[Tensor]:
    """As `shuffled_batches`, each row once an epoch, with rows of like ``cost`` ``[rows]`` in a batch.

    A new random order is cut into windows of ``window`` batches; within a window rows are sorted by cost and cut into
    batches; then the order of all batches is drawn. Only the last batch of the epoch's order may be smaller, and the
    batch with the costliest row comes first: memory runs out at once or not at all.
    """
    order = torch.randperm(rows, generator=generator, device=generator.device)
    cost = cost.to(order.device)
    sorted_windows = [part[cost[part].argsort(descending=True, stable=True)] for part in order.split(size * window)]
    batches = torch.cat(sorted_windows).split(size)
    places = torch.randperm(len(batches), generator=generator, device=generator.device).tolist()
    first = max(places, key=lambda place: int(cost[batches[place]].max()))
    for place in (first, *(place for place in places if place != first)):
        yield batches[place].to(device)


def ordered_batches(rows: int, size: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """All row numbers in order, none dropped, in batches of ``size``."""
    yield from torch.arange(rows, device=device).split(size)
