"""Work that a device may have too little memory for."""

from __future__ import annotations

import gc
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from src.core.errors import OutOfMemory
from src.core.logging import get_logger

_log = get_logger(__name__)


GIGABYTE = 10**9


def gigabytes(count: float) -> str:
    """Bytes as a person reads them."""
    return f"{count / GIGABYTE:,.1f} GB" if count >= GIGABYTE / 10 else f"{count / 10**6:.1f} MB"


#: where Linux says how much a container may have: cgroups of version 2, and of version 1
_BOUNDS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory_of(device: torch.device) -> float:
    """Bytes that a device has in all, whoever holds them now: of a GPU, or of the machine within its container's bound,
    with its swap space. Infinite where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    try:
        machine = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError):  # a system that counts its pages in another way, or not at all
        return math.inf
    bounds = [text for place in _BOUNDS if place.is_file() and (text := place.read_text().strip()).isdigit()]
    return min(machine, *map(float, bounds)) + _swap() if bounds else machine + _swap()


def _swap() -> float:
    """Bytes of swap space, as Linux tells them."""
    place = Path("/proc/meminfo")
    found = re.search(r"^SwapTotal:\s+(\d+) kB", place.read_text(), re.MULTILINE) if place.is_file() else None
    return 1024.0 * int(found[1]) if found else 0.0


def give_back(device: torch.device) -> None:
    """Return what nobody holds any more to the device; who calls this has let go of it before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


#: how the CUDA runtime and driver, Triton, and the libraries below torch (cuBLAS, cuDNN, cuSOLVER, cuSPARSE) say it;
#: torch raises its own `OutOfMemoryError` only where its own allocator was asked
_SAID_BY_OTHERS = re.compile(
    r"CUDA (driver )?error: out of memory|Triton Error \[CUDA\]: out of memory|CUDA_(ERROR_)?OUT_OF_MEMORY"
    r"|STATUS_ALLOC_FAILED|STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device has too little memory, whoever raised it; work in smaller parts may fit."""
    if isinstance(error, (OutOfMemory, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _SAID_BY_OTHERS.search(str(error)) is not None


def torch_reason(error: BaseException) -> str:
    """The first sentence of what torch says: the rest is advice about its allocator, or how to debug a kernel."""
    return str(error).split("\n")[0].split(". ")[0]


def in_parts(rows: Tensor, size: int, work: Callable[[Tensor], None], setting: str, advice: str) -> None:
    """Call ``work`` with all ``rows`` ``[n]`` in their order, ``size`` ≥ 1 at once; out of memory halves the size.

    The smaller size stays, and ``work`` is asked once more for the rows that did not fit: it must be one that can be
    repeated. The first halving is a warning that names ``setting``, which holds the size. Raises ``OutOfMemory`` with
    the ``advice`` when not even one row fits.

    Args:
        rows: row numbers ``[n]``.
        size: rows at once to begin with.
        work: is called with a part of the rows.
        setting: the key that holds the size.
        advice: what the user can do where one row does not fit.
    """
    place, given = 0, size
    while place < len(rows):
        part = rows[place : place + size]
        try:
            work(part)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = torch_reason(error)
            if len(part) == 1:
                raise OutOfMemory(
                    f"the device is out of memory with a single row at once ({reason}): {advice}"
                ) from error
        else:
            place += len(part)
            continue
        # outside the handler: the exception would keep the failed work's tensors alive
        tell, size = _log.warning if size == given else _log.info, len(part) // 2
        tell("out of memory (%s): going on with %d rows at once; %s was %d", reason, size, setting, given)
        give_back(rows.device)
