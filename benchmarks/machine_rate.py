"""What a machine can do, measured in the run that needs to know: time, memory, matrix products, bandwidth."""

from __future__ import annotations

import gc
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

_WARM, _ROUNDS = 2, 7


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, the device's work included."""
    synchronise(device)
    start = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - start


def own_seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """On a GPU `seconds_of`; on a CPU the processor time of this process, all its threads together.

    Unlike wall time, that does not count the time in which other programs held the processor.
    """
    if device.type == "cuda":
        return seconds_of(action, device)
    start = time.process_time()
    action()
    return time.process_time() - start


def matrix_rate(dtype: torch.dtype, device: torch.device, size: int = 0) -> float:
    """Operations a second of a square matrix product, two for each multiply-add: the median of some rounds."""
    size = size or (8192 if device.type == "cuda" else 1024)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    repeats = 20 if device.type == "cuda" else 2

    def multiply() -> None:
        for _ in range(repeats):
            torch.mm(left, right)

    return repeats * 2 * size**3 / _median_seconds(multiply, device)


def memory_rate(device: torch.device, size: int = 0) -> float:
    """Bytes a second of a copy, each byte read and written counting as two: the median of some rounds."""
    size = size or (1 << 30 if device.type == "cuda" else 1 << 26)
    source = torch.empty(size, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    return 2 * size / _median_seconds(lambda: target.copy_(source), device)


def _median_seconds(action: Callable[[], object], device: torch.device) -> float:
    return statistics.median([seconds_of(action, device) for _ in range(_WARM + _ROUNDS)][_WARM:])


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Two of the values that hold the median between them with a probability of at least 95 %, whatever they are
    distributed like (binomial); the whole range where there are fewer than six.
    """
    ordered, n, outside = sorted(values), len(values), 0.0
    for low in range(n // 2):
        outside += 2 * math.comb(n, low) / 2**n
        if outside > 0.05:
            return (ordered[low - 1], ordered[n - low]) if low else (ordered[0], ordered[-1])
    return ordered[0], ordered[-1]


def peak_growth(action: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors that were alive at once while ``action`` ran, beyond those that were there before.

    GPU: the caching allocator's own peak. CPU: the running sum of the profiler's record of every allocation, and not
    the process's resident memory, which would drown a small model in Python's and the libraries' own pages and keeps
    what was freed.
    """
    gc.collect()
    synchronise(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        synchronise(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        action()
    return _peak_of(record)


def _peak_of(record: profile) -> int:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        record.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"]
    alive = peak = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        alive += size
        peak = max(peak, alive)
    return peak


def held_bytes(model: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Bytes that stay between steps: parameters, buffers and the optimiser's state; a shared tensor counts once."""
    states = [value for state in optimiser.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(_storages([*model.parameters(), *model.buffers(), *states]).values())


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def machine_line(device: torch.device) -> str:
    """Date, processor or GPU, threads, versions: what a figure stands on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    threads = f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    return f"{date.today()}, {name}, {threads}, torch {torch.__version__}, Python {platform.python_version()}"


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
