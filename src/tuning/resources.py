"""What a trial may occupy: CPU cores, and a share of the GPU that is measured before the search."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from src.core.errors import ConfigError, Problem, ProblemsFound
from src.core.hardware import resolve_device
from src.core.logging import get_logger
from src.core.settings import nested_plain
from src.pipeline.settings import ExperimentSettings
from src.tuning.gpu_probe import GpuNeed, GpuProbe
from src.tuning.search_space import SearchSpace, Value
from src.tuning.settings import RaySettings, TuningSettings
from src.tuning.store import Store

_log = get_logger(__name__)

#: a CUDA context and the libraries' own buffers lie outside torch's allocator
CONTEXT_BYTES = 600 * 2**20
#: other values of the searched parameters may need more than the ones that were measured
_MARGIN = 1.25
#: twice as many trials at once must bring so much more, or the number stays
_WORTH = 0.1
#: how long each number of trials at once is looked at
_SECONDS = 2.0
#: objectives that mean nothing beside other trials
TIMED = ("latency_ms", "seconds")
#: of a GPU, for Ray's books: probes share the one that was reserved for them
_PROBES_AT_MOST = 100


@dataclass(frozen=True)
class Resources:
    """What one trial occupies.

    Attributes:
        cpu: CPU cores.
        gpu: Share of a GPU; 0 where trials run on the CPU.
        free: Bytes of a GPU that trials may fill together; 0 where nobody has looked.
    """

    cpu: float
    gpu: float
    free: int = 0

    def share(self, memory_retries: int) -> float:
        """The GPU share of a trial that ran out of memory so often: twice as much each time, at most all of it."""
        return min(self.gpu * 2**memory_retries, 1.0)

    def memory(self, memory_retries: int) -> int:
        """Bytes that the allocator of such a trial may hold; 0: as many as there are."""
        share = self.share(memory_retries)
        if share >= 1:
            return 0
        # a part of the share is for the process's CUDA context, which the allocator does not count
        return int(max(share * self.free - CONTEXT_BYTES, 0.1 * share * self.free))


# ---------------------------------------------------------------------------------------------------- before training


def check_gpu(tuning: TuningSettings, ray_settings: RaySettings, device: str) -> None:
    """Refuse devices that would make trials and baseline incomparable, or that the trials cannot be given.

    Args:
        tuning: names the share of a GPU.
        ray_settings: name a cluster, where there is one.
        device: of the experiment.

    Raises:
        ConfigError: the baseline would compute on a GPU and the trials on a CPU, or a cluster is to give a GPU by its
            number.
    """
    try:
        on_gpu = resolve_device(device).type == "cuda"
    except ProblemsFound:
        return  # told where the stages are checked
    problems = []
    if on_gpu and tuning.gpu_per_trial == 0:
        rule = "the baseline is trained on the GPU and the trials on the CPU: neither could be compared with the other"
        step = "tuning.gpu_per_trial=auto, or runtime.device=cpu for both"
        problems.append(Problem("tuning.gpu_per_trial", tuning.gpu_per_trial, rule, step))
    if device.startswith("cuda:") and ray_settings.address:
        rule = "a cluster gives its trials the GPUs that are free, none by its number"
        problems.append(Problem("runtime.device", device, rule, "runtime.device=cuda"))
    if problems:
        raise ConfigError(problems)


# ------------------------------------------------------------------------------------------------------- the decision


def most_that_fit(measured: GpuNeed, slots: int) -> int:
    """How many trials fit into a GPU's free memory together, at least 1; at most ``slots``, what the CPUs can feed."""
    each = measured.peak * _MARGIN + CONTEXT_BYTES
    return max(1, min(slots, math.floor(measured.free / each)))


def most_that_pay(rate: Callable[[int], float], bound: int) -> int:
    """The number of trials at once, 1, 2, 4 … ``bound``, after which more of them bring next to nothing.

    ``rate(k)`` is what k of them do together in a second. A small model's step is bound by the kernels' launches, and
    processes take turns on a GPU: memory may have room for sixteen trials that are no faster than four.
    """
    count, found = 1, rate(1) if bound > 1 else 0.0
    while count < bound:
        more = min(2 * count, bound)
        brought = rate(more)
        if brought < found * (1 + _WORTH * (more / count - 1)):
            break
        count, found = more, brought
    return count


def decide(
    tuning: TuningSettings, settings: ExperimentSettings, space: SearchSpace, values: Mapping[str, Value], store: Store
) -> Resources:
    """Resources of a trial in the running Ray session.

    Where a time is searched for, trials run one by one: beside others it would tell of them too.

    Args:
        tuning: the wanted cores and share of a GPU.
        settings: of the experiment.
        space: what is searched.
        values: of the trial whose need is measured.
        store: where that trial finds its data.
    """
    available = ray.cluster_resources()
    gpus = available.get("GPU", 0) if settings.runtime.device != "cpu" else 0
    timed = [name for name in space.objectives if name in TIMED]
    if timed:
        _log.info("trials run one at a time, because %s is among the objectives", " and ".join(timed))
        return Resources(max(tuning.cpu_per_trial, _cores_of_a_node()), 1.0 if gpus else 0.0)
    if not gpus or tuning.gpu_per_trial == 1:
        return Resources(tuning.cpu_per_trial, 1.0 if gpus else 0.0)
    with _probes(nested_plain(settings), space.stage, dict(values), store) as take:
        (alone,) = take(1)
        measured: GpuNeed = ray.get(alone.measure.remote())
        if tuning.gpu_per_trial != "auto":
            return Resources(tuning.cpu_per_trial, tuning.gpu_per_trial, measured.free)
        slots = max(1, int(available.get("CPU", 1) / tuning.cpu_per_trial / gpus))
        fit = most_that_fit(measured, min(slots, _PROBES_AT_MOST))

        def rate(count: int) -> float:
            steps = sum(ray.get([probe.rate.remote(_SECONDS) for probe in take(count)]))
            _log.info("%d at once: %.1f steps a second together", count, steps)
            return float(steps)

        count = most_that_pay(rate, fit)
    _log.info("one trial alone needs %.2f GB: %d fit, 1/%d of the GPU each", measured.peak / 1e9, fit, count)
    return Resources(tuning.cpu_per_trial, 1 / count, measured.free)


def measure_alone(
    settings: ExperimentSettings, space: SearchSpace, values: Mapping[str, Value], store: Store
) -> GpuNeed:
    """What one trial needs of a GPU of the running Ray session.

    Args:
        settings: of the experiment.
        space: what is searched.
        values: of the trial that is measured.
        store: where it finds its data.
    """
    with _probes(nested_plain(settings), space.stage, dict(values), store) as take:
        measured: GpuNeed = ray.get(take(1)[0].measure.remote())
        return measured


def _cores_of_a_node() -> float:
    """The cores of the smallest node that has any: what one trial takes so that none can start beside it."""
    cores = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    return float(min((found for found in cores if found > 0), default=1.0))


@contextmanager
def _probes(*arguments: Any) -> Iterator[Callable[[int], list[Any]]]:
    """``take(n)``: n probes on one GPU, which is theirs alone; those that are there already are among them."""
    group = placement_group([{"GPU": 1}])
    place = PlacementGroupSchedulingStrategy(placement_group=group)
    actor = ray.remote(num_cpus=0, num_gpus=1 / _PROBES_AT_MOST, scheduling_strategy=place)(GpuProbe)
    started = list[Any]()

    def take(count: int) -> list[Any]:
        started.extend(actor.remote(*arguments) for _ in range(count - len(started)))
        return started[:count]

    try:
        ray.get(group.ready())
        yield take
    finally:
        for probe in started:
            ray.kill(probe)
        remove_placement_group(group)
