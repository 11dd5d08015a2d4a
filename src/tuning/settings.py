"""How a search is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from src.core.settings import STRICT


@dataclass(frozen=True, config=STRICT)
class TuningSettings:
    """Trials, sampler, early stopping and resources of a search."""

    search_space: Annotated[Path, Field(description="YAML document of the search space")] = Path(
        "search_spaces/distill.yaml"
    )
    trials: Annotated[int, Field(ge=1, description="trials in all; the first is the no-distillation point")] = 20
    metric: Annotated[
        str, Field(description="validation metric to maximise; empty: the one that the search space names")
    ] = ""
    sampler: Annotated[Literal["tpe", "random"], Field(description="Optuna's sampler")] = "tpe"
    startup_trials: Annotated[int, Field(ge=0, description="random trials before TPE models the objective")] = 6
    pruner: Annotated[
        Literal["median", "none"], Field(description="early stopping of poor trials: Optuna's median rule, or none")
    ] = "median"
    pruner_startup_trials: Annotated[int, Field(ge=0, description="finished trials before any trial is stopped")] = 4
    pruner_warmup_epochs: Annotated[int, Field(ge=0, description="epochs of a trial before it may be stopped")] = 4
    cpu_per_trial: Annotated[float, Field(gt=0, description="CPU cores that a trial occupies")] = 1.0
    gpu_per_trial: Annotated[
        float, Field(ge=0, le=1, description="share of a GPU that a trial occupies (ignored without a GPU)")
    ] = 0.25
    keep_top: Annotated[int, Field(ge=1, description="trials that keep their student on disk")] = 3
    dashboard: Annotated[bool, Field(description="start the Ray dashboard (port 8265) while the search runs")] = False
    dashboard_host: Annotated[
        str, Field(min_length=1, description="address the dashboard listens on; in the container 0.0.0.0")
    ] = "127.0.0.1"
    ray_memory_mb: Annotated[int, Field(ge=80, description="Ray's object store, in MB")] = 256
