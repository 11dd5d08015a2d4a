"""What a trial may occupy: CPU cores, and a share of the GPU that is measured before the search."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ray
import torch
from pydantic import TypeAdapter

from src.core.checkpoints import NoCheckpoint
from src.core.errors import StopTraining
from src.core.hardware import resolve_device
from src.core.logging import get_logger
from src.pipeline.settings import ExperimentSettings
from src.tuning.applied import apply_values, plain
from src.tuning.search_space import Stage, Value
from src.tuning.settings import TuningSettings
from src.tuning.shared_data import FOLDER, SharedData
from src.tuning.stage_functions import train_stage
from src.tuning.store import Store

_log = get_logger(__name__)

#: a CUDA context and the libraries' own buffers lie outside torch's allocator
CONTEXT_BYTES = 600 * 2**20
#: other values of the searched parameters may need more than the ones that were measured
_MARGIN = 1.25


@dataclass(frozen=True)
class Resources:
    """CPU cores and GPU share of one trial; ``gpu`` is 0 where trials run on the CPU."""

    cpu: float
    gpu: float

    def share(self, memory_retries: int) -> float:
        """The GPU share of a trial that ran out of memory so often: twice as much each time, at most all of it."""
        return min(self.gpu * 2**memory_retries, 1.0)


@dataclass(frozen=True)
class Measured:
    """One trial alone on the GPU: peak bytes of torch's allocator, seconds an epoch; and the GPU's bytes."""

    peak: int
    seconds: float
    total: int


def gpu_share(measured: Measured, slots: int) -> float:
    """1/k of the GPU for the largest k whose trials fit together; k is at most ``slots``, what the CPUs can feed."""
    each = measured.peak * _MARGIN + CONTEXT_BYTES
    return 1 / max(1, min(slots, math.floor(measured.total / each)))


def decide(
    tuning: TuningSettings, settings: ExperimentSettings, stage: Stage, probe: Mapping[str, Value], store: Store
) -> Resources:
    """Resources of a trial in the running Ray session; ``probe`` holds the values whose need is measured."""
    available = ray.cluster_resources()
    gpus = available.get("GPU", 0) if settings.runtime.device != "cpu" else 0
    if not gpus:
        return Resources(tuning.cpu_per_trial, 0.0)
    if tuning.gpu_per_trial != "auto":
        return Resources(tuning.cpu_per_trial, tuning.gpu_per_trial)
    task = ray.remote(num_gpus=1, num_cpus=tuning.cpu_per_trial)(measure)
    measured = ray.get(task.remote(plain(settings), stage, dict(probe), store))
    slots = max(1, int(available.get("CPU", 1) / tuning.cpu_per_trial / gpus))
    share = gpu_share(measured, slots)
    _log.info(
        "one trial alone: %.2f GB at its peak, %.1f s an epoch; 1/%d of the GPU each",
        measured.peak / 1e9,
        measured.seconds,
        round(1 / share),
    )
    return Resources(tuning.cpu_per_trial, share)


def measure(settings: Mapping[str, object], stage: Stage, values: Mapping[str, Value], store: Store) -> Measured:
    """Train one epoch alone on a GPU."""
    asked = apply_values(TypeAdapter(ExperimentSettings).validate_python(settings), values)
    device = resolve_device(asked.runtime.device)
    torch.cuda.init()  # a fresh worker has not touched its GPU yet, and torch counts nothing before
    torch.cuda.reset_peak_memory_stats(device)

    def stop(epoch: int, metrics: Mapping[str, float]) -> None:
        raise StopTraining

    start = time.perf_counter()
    with store.scratch() as scratch:
        data = SharedData.load(store.download(FOLDER, Path(scratch)), device)
        train_stage(stage, asked, data, device, stop, NoCheckpoint())
    total = torch.cuda.get_device_properties(device).total_memory
    return Measured(torch.cuda.max_memory_reserved(device), time.perf_counter() - start, total)
