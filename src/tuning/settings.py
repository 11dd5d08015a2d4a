"""How a search is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from src.core.settings import STRICT


@dataclass(frozen=True, config=STRICT)
class TuningSettings:
    """Sampler, early stopping, resources and what is kept."""

    search_space: Annotated[
        Path | None, Field(description="YAML document of the search space; null: the stage's own in search_spaces/")
    ] = None
    metric: Annotated[
        str, Field(description="validation metric to optimise first; empty: the one that the search space names")
    ] = ""
    sampler: Annotated[
        str,
        Field(
            min_length=1,
            description="Optuna's tpe, random or cmaes; grid: every point of the space once; package.module:factory: a "
            "sampler of your own",
        ),
    ] = "tpe"
    seed: Annotated[
        int | None, Field(ge=0, description="decides the sampler's draws; null: the run's seed, which also trains")
    ] = None
    startup_trials: Annotated[int, Field(ge=0, description="random trials before TPE or CMA-ES models anything")] = 5
    pruner: Annotated[
        str,
        Field(
            min_length=1,
            description="early stopping of poor trials: median (Optuna's rule), asha, hyperband, or none; "
            "package.module:factory: a pruner of your own",
        ),
    ] = "median"
    pruner_startup_trials: Annotated[
        int, Field(ge=0, description="finished trials before the median rule stops any")
    ] = 4
    pruner_warmup_epochs: Annotated[int, Field(ge=0, description="epochs of a trial before it may be stopped")] = 4
    reduction_factor: Annotated[
        int, Field(ge=2, description="ASHA and Hyperband keep one in so many trials at each rung")
    ] = 3
    cpu_per_trial: Annotated[
        float, Field(gt=0, description="CPU cores that a trial occupies; it computes with as many threads, at least 1")
    ] = 1.0
    gpu_per_trial: Annotated[
        Literal["auto"] | Annotated[float, Field(ge=0, le=1)],
        Field(description="share of a GPU that a trial occupies; auto: measured first"),
    ] = "auto"
    population: Annotated[
        Literal["auto", "off"] | Annotated[int, Field(ge=2, le=256)],
        Field(
            description="trials that one worker trains as one batched model, where they differ in numbers only; auto: "
            "as many as the GPU's memory holds, none on a CPU; off: each trial alone, which is repeatable bit by bit"
        ),
    ] = "off"
    retries: Annotated[
        int, Field(ge=0, description="how often a trial goes on after its worker died or ran out of GPU memory")
    ] = 2
    stall_minutes: Annotated[
        float,
        Field(
            ge=0,
            le=100_000,
            description="a trial that reports no epoch for so long loses its worker (see retries); 0: never",
        ),
    ] = 0.0
    keep_top: Annotated[
        int,
        Field(
            ge=1,
            description="completed trials that keep model and checkpoint on disk, at least as many as tuning.finalists",
        ),
    ] = 3
    finalists: Annotated[
        int,
        Field(
            ge=1,
            description="best trials that are trained again on other seeds, the best mean of which wins; 1: the best "
            "value wins, for a quick look",
        ),
    ] = 3
    finalist_seeds: Annotated[int, Field(ge=1, description="other seeds that each finalist is trained on")] = 2
    max_folder_mb: Annotated[
        int, Field(ge=0, description="the result folder's bound in MB, at which the search pauses; 0: none")
    ] = 0
    warm_start_trials: Annotated[
        int, Field(ge=1, description="best trials of the result that warm_start names, tried first")
    ] = 3
    seeds: Annotated[int, Field(ge=1, description="protocol=fair: trainings of each arm's best configuration")] = 5
    resamples: Annotated[int, Field(ge=1000, description="protocol=fair: bootstrap resamples")] = 10_000


@dataclass(frozen=True, config=STRICT)
class RaySettings:
    """Where trials run."""

    address: Annotated[
        str, Field(description="an existing Ray cluster: auto or HOST:PORT; empty: this machine, for this search only")
    ] = ""
    memory_mb: Annotated[int, Field(ge=80, description="Ray's object store on this machine, in MB")] = 128
    dashboard_host: Annotated[
        str, Field(min_length=1, description="address the dashboard listens on; in the container 0.0.0.0")
    ] = "127.0.0.1"
    dashboard_port: Annotated[int, Field(ge=1, le=65535, description="port the dashboard listens on")] = 8265
