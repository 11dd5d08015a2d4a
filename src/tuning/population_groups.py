"""Which trials of a search may train as one batched model, and how many at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from pydantic import ValidationError

from src.core.data_utils import fingerprint
from src.core.errors import AnyoError, ConfigError
from src.core.logging import get_logger
from src.core.settings import nested_plain
from src.pipeline.settings import ExperimentSettings
from src.student.objectives import SAMPLED, resolve_loss
from src.student.settings import NetworkSettings
from src.tuning.gpu_probe import GpuNeed
from src.tuning.resources import CONTEXT_BYTES, TIMED, Resources, decide, measure_alone
from src.tuning.search_space import SearchSpace, Stage, Value, flatten
from src.tuning.settings import TuningSettings
from src.tuning.store import Store
from src.tuning.trial_values import apply_values

_log = get_logger(__name__)

#: most trials in one population that ``auto`` takes; none was measured to pay beyond
MOST = 32
#: of a lone trial's memory: members share the data, and others may need more than the one that was measured
_MARGIN = 1.25
#: whole numbers that decide no shape
_NUMBERS = ("seed", "student_seed", "active.rank_threshold")
_SEARCHED = ("student.", "distill.", "active.")
#: architectures whose step cannot be batched over members: a fused kernel
_ALONE = ("gru4rec",)


def check_population(tuning: TuningSettings, space: SearchSpace) -> None:
    """Raises ``ConfigError`` where a population was asked for that cannot be."""
    if tuning.population in ("auto", "off"):
        return
    step = "tuning.population=off"
    if space.stage == "teacher":
        raise ConfigError.one("tuning.population", tuning.population, "a teacher is trained alone", step)
    if timed := [name for name in space.objectives if name in TIMED]:
        rule = f"{' and '.join(timed)} of a trial cannot be told among others, and is an objective"
        raise ConfigError.one("tuning.population", tuning.population, rule, step)


def largest_population(measured: GpuNeed, share: float) -> int:
    """How many trials one process holds in its share of a GPU's memory, at least 1 and at most `MOST`."""
    return max(1, min(MOST, int((share * measured.free - CONTEXT_BYTES) / (measured.peak * _MARGIN))))


def decide_population_size(
    tuning: TuningSettings, settings: ExperimentSettings, space: SearchSpace, values: Mapping[str, Value], store: Store
) -> tuple[Resources, int]:
    """What a worker occupies in the running Ray session, and how many trials it trains at once.

    A population has a GPU to itself unless ``gpu_per_trial`` names a share.

    Args:
        tuning: the wanted population and share.
        settings: of the experiment.
        space: a search over times, or over the teacher, has no populations.
        values: of the trial whose need is measured.
        store: where that trial finds its data.
    """
    wanted = tuning.population
    gpus = ray.cluster_resources().get("GPU", 0) if settings.runtime.device != "cpu" else 0
    lone = wanted == "off" or space.stage == "teacher" or any(name in TIMED for name in space.objectives)
    if lone or (wanted == "auto" and not gpus):
        return decide(tuning, settings, space, values, store), 1
    if not gpus:
        return decide(tuning, settings, space, values, store), int(wanted)
    share = 1.0 if tuning.gpu_per_trial == "auto" else tuning.gpu_per_trial
    measured = measure_alone(settings, space, values, store)
    population_size = largest_population(measured, share) if wanted == "auto" else int(wanted)
    _log.info("one trial alone needs %.2f GB: up to %d train as one", measured.peak / 1e9, population_size)
    return Resources(tuning.cpu_per_trial, share, measured.free), population_size


@dataclass(frozen=True)
class PopulationGroups:
    """Sorts trials by what decides a model's form: those of one group differ in numbers only.

    A number that is 0 switches something off, so that 0 and any other value are two forms.
    """

    settings: ExperimentSettings
    stage: Stage
    num_items: int

    def __call__(self, values: Mapping[str, Value]) -> str:
        """The group of a trial with these values; empty for one that must train alone."""
        if self.stage == "teacher":
            return ""
        try:
            settings = apply_values(self.settings, values)
            student = settings.student
            if not isinstance(student, NetworkSettings):
                return ""
            loss = resolve_loss(student, self.num_items).loss
        except (AnyoError, ValidationError):
            return ""  # its own worker says what is wrong
        if student.architecture in _ALONE or loss in SAMPLED or student.positions == "all":
            return ""
        if student.loop.adapt_micro_batch:  # how many forward passes a step takes is a training's own
            return ""
        return fingerprint({key: _form(key, value) for key, value in flatten(nested_plain(settings)).items()})


def _form(key: str, value: Any) -> Any:
    if key in _NUMBERS:
        return "any"
    if isinstance(value, float) and key.startswith(_SEARCHED) and not key.startswith("student.options."):
        return "0" if value == 0 else "any"
    return value
