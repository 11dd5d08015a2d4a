"""Where a process's memory comes from, as Linux tells it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor


def lies_in(tensor: Tensor, file: Path) -> bool:
    """Whether a tensor's numbers are those of a mapped file, and no copy of them."""
    maps = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines())
    own = [[int(end, 16) for end in fields[0].split("-")] for fields in maps if fields[-1] == str(file.resolve())]
    return any(start <= tensor.data_ptr() < end for start, end in own)
