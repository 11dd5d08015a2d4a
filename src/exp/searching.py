"""What the tune_* commands share: their checks, and what a search leaves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from src.core.errors import ConfigError, gather
from src.core.paths import MANIFEST
from src.data.examples import already_open, openings
from src.data.teacher_outputs import Teachings
from src.exp.checks import check_experiment
from src.exp.replay import REPLAY_HEADING, REPLAY_WITH, replay_keys
from src.exp.resume import SPACE_FILE
from src.exp.search_settings import SearchSettings
from src.pipeline.run_folder import RunFolder
from src.pipeline.runs import describe_data, tracker_of
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages
from src.tuning.ray_session import check_ray
from src.tuning.report import write_outcomes, write_trials_table
from src.tuning.resources import check_gpu
from src.tuning.search import (
    SearchOutcome,
    Workplace,
    check_content,
    check_resources,
    content_of,
    plan_search,
    prepare_space,
    run_search,
    space_document,
    warm_trials,
    with_threads,
)
from src.tuning.search_space import SearchSpace, Stage
from src.tuning.store import Store


@dataclass(frozen=True, eq=False)
class Prepared:
    """What `check_search` found out."""

    stages: Stages
    space: SearchSpace
    warm: Path | None


def experiment(settings: SearchSettings) -> ExperimentSettings:
    """The settings without the search, with as many threads as a trial has cores."""
    values = {field.name: getattr(settings, field.name) for field in fields(ExperimentSettings)}
    return with_threads(ExperimentSettings(**values), settings.tuning)


def check_threads(settings: SearchSettings) -> None:
    """Raises ``ConfigError`` when the student's threads were set to something else than its share of the cores."""
    wanted, given = experiment(settings).student.threads, settings.student.threads
    if given not in (1, wanted):
        rule = f"in a search a trial computes with as many threads as it occupies cores ({wanted})"
        raise ConfigError.one("student.threads", given, rule, f"tuning.cpu_per_trial={given}")


def check_search(settings: SearchSettings, stage: Stage, document: str, extra: Any = None) -> Prepared:
    """Everything that can be known to be wrong before training. ``extra(space, experiment)`` may look for more."""
    if settings.resume is not None:  # on the command line it is dealt with before anything is composed
        rule = "is an argument of its own: it brings all other settings with it"
        raise ConfigError.one("resume", str(settings.resume), rule, f"resume={settings.resume} on the command line")
    found: dict[str, Any] = {}
    asked = experiment(settings)

    def space() -> None:
        found["space"] = prepare_space(asked, settings.tuning, stage, document)
        if extra is not None:
            extra(found["space"], asked)
        if settings.warm_start is not None and settings.tuning.sampler == "grid":
            rule = "a grid has its points already"
            raise ConfigError.one("warm_start", str(settings.warm_start), rule, "leave one of the two out")
        if settings.warm_start is not None:
            warm_trials(settings.warm_start, found["space"], settings.tuning.warm_start_trials)

    def stages() -> None:
        found["stages"] = check_experiment(asked, teacher=stage != "student")

    gather(
        space,
        stages,
        lambda: check_threads(settings),
        lambda: check_resources(settings.tuning, settings.ray),
        lambda: check_gpu(settings.tuning, settings.ray, settings.runtime.device),
        lambda: Store.open(settings.storage) if settings.storage else None,
        lambda: check_ray(settings.ray, settings.dashboard),
    )
    return Prepared(found["stages"], found["space"], settings.warm_start)


@contextmanager
def driving(settings: SearchSettings, stages: Stages, folder: RunFolder, document: str) -> Iterator[Workplace]:
    """The frame of every tune_* command: this process alone drives the folder's search; data and baseline are there.

    What a finished folder says is set aside, and the search space is kept beside it. Raises ``ConfigError`` when the
    search's test split was opened and more is asked, before anything is trained.
    """
    with folder.alone():
        if (folder.path / MANIFEST).exists() and openings(folder.test_record) and not settings.reopen_test:
            raise ConfigError([already_open(folder.test_record)])
        folder.begin_again()
        if not (folder.path / SPACE_FILE).exists():
            shutil.copyfile(space_document(settings.tuning, document), folder.path / SPACE_FILE)
        describe_data(stages)
        _ = stages.baseline
        place = Workplace(folder.path, settings.tuning, settings.ray, settings.dashboard, settings.storage)
        yield replace(place, tracker=tracker_of(stages, folder))


def search_and_publish(
    settings: SearchSettings, prepared: Prepared, folder: RunFolder, place: Workplace, outputs: Teachings,
    name: str,
) -> SearchOutcome:  # fmt: skip
    """The single search of a stage: the winner's model (as ``name``) and keys, the trials table, the curves."""
    stages = prepared.stages
    plan = plan_search(stages.settings, prepared.space, settings.tuning, settings.trials, prepared.warm)
    with run_search(place, plan, stages, outputs) as outcome:
        folder.copy_folder(outcome.model_folder, name)
    command = REPLAY_WITH[outcome.search.record.space.stage]
    heading = REPLAY_HEADING.format(command=command, folder=folder.path)
    folder.write_yaml("best_params.yaml", replay_keys(outcome.settings), heading)
    write_trials_table(folder.path, [outcome.search])
    write_outcomes(tracker_of(stages, folder), outcome.search.record)
    folder.watch.add("search_time", outcome.seconds)
    return outcome


def check_resumed(folder: Path, prepared: Prepared) -> None:
    """Raises ``ArtefactError`` when a search was begun in the folder with other data, or its journal is damaged."""
    check_content(folder, content_of(prepared.stages, {}))
