"""What the tune_* commands add to an experiment, apart from the search: judged before Ray or torch is imported."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from src.core.settings import STRICT
from src.pipeline.settings import ExperimentSettings
from src.tuning.settings import RaySettings, TuningSettings


@dataclass(frozen=True, config=STRICT)
class SearchSettings(ExperimentSettings):
    """An experiment and the search over it."""

    trials: Annotated[
        int, Field(ge=1, description="trials in all (protocol=fair: of each arm); resume may raise it")
    ] = 20
    warm_start: Annotated[
        Path | None, Field(description="an earlier search's result folder, whose best trials are tried first")
    ] = None
    resume: Annotated[
        Path | None, Field(description="a result folder whose search goes on; few other keys may change")
    ] = None
    storage: Annotated[
        str, Field(description="where trials keep their files: a shared folder or s3://…; empty: the result folder")
    ] = ""
    dashboard: Annotated[bool, Field(description="start the Ray dashboard while the search runs")] = False
    reopen_test: Annotated[
        bool, Field(description="open the test split once more for a search whose test split was opened already")
    ] = False
    ray: RaySettings = RaySettings()
    tuning: TuningSettings = TuningSettings()


@dataclass(frozen=True, config=STRICT)
class TuneSettings(SearchSettings):
    """An experiment, the search over it, and what the search is to answer."""

    protocol: Annotated[
        Literal["single", "fair"],
        Field(description="single: one search for the best student; fair: arms with equal budgets, several seeds"),
    ] = "single"


def experiment(settings: SearchSettings) -> ExperimentSettings:
    """The settings without the search. A trial computes with as many threads as it occupies cores, and so does the
    baseline, which a trial repeats."""
    values = {field.name: getattr(settings, field.name) for field in fields(ExperimentSettings)}
    threads = max(1, int(settings.tuning.cpu_per_trial))
    return ExperimentSettings(**{**values, "student": replace(settings.student, threads=threads)})
