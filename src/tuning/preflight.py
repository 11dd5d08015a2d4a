"""Everything about a search that can be known to be wrong before anything is trained."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from src.core.errors import ConfigError, Problem, ProblemsFound, gather
from src.core.logging import get_logger
from src.core.metrics import metric_names
from src.core.paths import REPOSITORY
from src.core.settings import nested_plain
from src.distill.settings import priors_beside, terms
from src.distill.teachers import LLM, TITLES
from src.pipeline.preflight import check_experiment, check_sizes, check_trial_priors
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages
from src.student.settings import NetworkSettings
from src.tuning.identity import check_content, content_of
from src.tuning.population_groups import check_population
from src.tuning.ray_session import check_ray
from src.tuning.resources import check_gpu
from src.tuning.samplers import sampler_note, sampling_problems
from src.tuning.search_settings import SearchSettings, TuneSettings, experiment
from src.tuning.search_space import CategoricalParameter, SearchSpace, Stage
from src.tuning.settings import RaySettings, TuningSettings
from src.tuning.space_document import load_search_space
from src.tuning.store import Store
from src.tuning.trial_values import apply_values, check_values, neutral_trial
from src.tuning.warm_start import warm_trials

_log = get_logger(__name__)

#: where settings stand that decide how large a student is
_SIZES = ("student.", "teacher.encoder.")


@dataclass(frozen=True, eq=False)
class PreparedSearch:
    """What `check_search` found out: the stages with their data loaded, and what is searched."""

    stages: Stages
    space: SearchSpace


def check_search(
    settings: SearchSettings,
    stage: Stage,
    document: str,
    extra: Callable[[SearchSpace, ExperimentSettings], None] = lambda space, asked: None,
) -> PreparedSearch:
    """Look at space, experiment and machine.

    Args:
        settings: what the command was asked for.
        stage: what is searched.
        document: the stage's own search space in `search_spaces/`, where the settings name none.
        extra: looks for more, once the search space is sound.

    Raises:
        ConfigError: with every problem.
    """
    if settings.resume is not None:  # on the command line it is dealt with before anything is composed
        rule = "is an argument of its own: it brings all other settings with it"
        raise ConfigError.one("resume", str(settings.resume), rule, f"resume={settings.resume} on the command line")
    asked, tuning = experiment(settings), settings.tuning
    spaces: list[SearchSpace] = []
    stages: list[Stages] = []

    def space() -> None:
        spaces.append(prepare_space(asked, tuning, stage, document))
        check_population(tuning, spaces[0])
        extra(spaces[0], asked)
        if settings.warm_start is not None and tuning.sampler == "grid":
            rule = "a grid has its points already"
            raise ConfigError.one("warm_start", str(settings.warm_start), rule, "leave one of the two out")
        if settings.warm_start is not None:
            warm_trials(settings.warm_start, spaces[0], tuning.warm_start_trials)

    def priors() -> None:
        if not spaces or not stages:
            return
        stages[0].trial_priors = trial_priors(asked, spaces[0])
        try:
            check_trial_priors(stages[0])
        except ConfigError as error:
            if tuning.search_space is not None:
                raise
            _log.warning("not searched: %s", error.problems[0])
            stages[0].trial_priors = ()
            spaces[0] = spaces[0].only(key for key in spaces[0].parameters if key not in _switches_that_read_texts())

    gather(
        space,
        lambda: stages.append(check_experiment(asked, teacher=stage != "student", labels_suffice=stage == "distill")),
        priors,
        lambda: check_searched_sizes(spaces[0], asked, stages[0]) if spaces and stages else None,
        lambda: check_threads(settings),
        lambda: check_resources(tuning, settings.ray),
        lambda: check_gpu(tuning, settings.ray, settings.runtime.device),
        lambda: Store.open(settings.storage) if settings.storage else None,
        lambda: check_ray(settings.ray, settings.dashboard),
    )
    return PreparedSearch(stages[0], spaces[0])


def check_searched_sizes(space: SearchSpace, settings: ExperimentSettings, stages: Stages) -> None:
    """Look at the students that trials may have.

    Args:
        space: what is searched.
        settings: what the trials have else.
        stages: the experiment, for its data and device.

    Raises:
        ConfigError: with every end of a range, and every choice, whose student no memory here would hold.
    """
    problems = []
    for key, parameter in space.parameters.items():
        if not key.startswith(_SIZES):
            continue
        for value in parameter.choices if isinstance(parameter, CategoricalParameter) else [parameter.high]:
            try:
                check_sizes(apply_values(settings, {key: value}), stages, encoder=key.startswith("teacher."))
            except ConfigError as error:
                rule = error.problems[0].rule
                problems.append(Problem(f"search space: {key}", value, rule, "lower the bound, or leave it out"))
    if problems:
        raise ConfigError(problems)


def trial_priors(settings: ExperimentSettings, space: SearchSpace) -> tuple[str, ...]:
    """The priors that terms which a search space switches on put in place of the student's own."""
    student = settings.student
    if not isinstance(student, NetworkSettings):
        return ()
    on = [term for term in terms() if any(f"distill.{key}" in space.parameters for key in term.switches)]
    return priors_beside(student, on)


def check_resumed(folder: Path, prepared: PreparedSearch) -> None:
    """Raises ``ArtefactError`` when a search was begun in the folder with other data, or its journal is damaged."""
    check_content(folder, content_of(prepared.stages, {}))


def check_protocol(settings: TuneSettings) -> None:
    """Raises ``ConfigError`` when arms could not be searched alike."""
    problems = []
    if settings.protocol == "fair" and settings.tuning.sampler == "grid":
        rule = "protocol=fair gives every arm the same number of trials, which their grids do not have"
        problems.append(Problem("tuning.sampler", "grid", rule, "tpe, random or cmaes"))
    if settings.protocol == "fair" and settings.warm_start is not None:
        rule = "protocol=fair starts every arm alike"
        problems.append(Problem("warm_start", str(settings.warm_start), rule, "leave it out"))
    if problems:
        raise ConfigError(problems)


# ------------------------------------------------------------------------------------------------------- the machine


def check_threads(settings: SearchSettings) -> None:
    """Raises ``ConfigError`` when the student's threads were set to something else than its share of the cores."""
    wanted, given = experiment(settings).student.threads, settings.student.threads
    if given not in (1, wanted):
        rule = f"in a search a trial computes with as many threads as it occupies cores ({wanted})"
        raise ConfigError.one("student.threads", given, rule, f"tuning.cpu_per_trial={given}")


def check_resources(tuning: TuningSettings, ray: RaySettings) -> None:
    """Raises ``ConfigError`` when no trial could ever start on this machine."""
    cores = os.cpu_count() or 1
    if tuning.cpu_per_trial > cores and not ray.address:
        rule = f"this machine has {cores} cores: no trial could ever start"
        raise ConfigError.one("tuning.cpu_per_trial", tuning.cpu_per_trial, rule, "lower it")


# --------------------------------------------------------------------------------------------------- the search space


def space_document(tuning: TuningSettings, document: str) -> Path:
    """The search space's file: the one that the settings name, or ``document`` in `search_spaces/`."""
    return tuning.search_space or REPOSITORY / "search_spaces" / f"{document}.yaml"


def prepare_space(settings: ExperimentSettings, tuning: TuningSettings, stage: Stage, document: str) -> SearchSpace:
    """Load and check the search space, before anything is trained.

    Args:
        settings: of the experiment, whose keys are searched.
        tuning: may name a document of the user's own.
        stage: what is searched.
        document: the stage's own in `search_spaces/`, for settings that name none.

    Raises:
        ConfigError: with every problem.
    """
    ks = settings.evaluation.ks
    names = settings.teacher.epoch_metrics(ks) if stage == "teacher" else metric_names(ks)
    problems: list[Problem] = []
    if tuning.metric and tuning.metric not in names:
        problems.append(Problem("tuning.metric", tuning.metric, f"must be one of {', '.join(names)}"))
    try:
        path = space_document(tuning, document)
        space = load_search_space(path, nested_plain(settings), names)
        if unsaid := _unsaid(settings, space):
            if tuning.search_space is not None:
                rule, step = "no teacher has embeddings", "leave it out, or name llm among distill.teachers"
                raise ConfigError([Problem(path.name, key, rule, step) for key in unsaid])
            space = space.only(key for key in space.parameters if key not in unsaid)
        if tuning.search_space is None and (settings.distill.outputs_from is not None or not _other_prior(settings)):
            # who gives a teacher's outputs may have no language model here that reads texts
            space = space.only(key for key in space.parameters if key not in _switches_that_read_texts())
        for key in _switches_that_read_texts() & set(space.parameters) if not _other_prior(settings) else ():
            found = getattr(settings.student, "prior", "none")
            rule = "takes the place of the student's prior, which must be there and another one"
            problems.append(Problem(f"{path.name}: {key}", found, rule, "leave it out"))
        problems += _check_kind(space, tuning, stage, path)
        check_values(space, settings)
        if stage == "distill" and space.stage == stage and document == stage and tuning.sampler != "grid":
            neutral_trial(space, settings)
        if tuning.sampler == "grid":
            space.grid_size()
        if note := sampler_note(tuning, space):
            _log.warning("%s", note)
    except ProblemsFound as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    if not tuning.metric or tuning.metric == space.metric:
        return space
    rest = {
        name: direction for name, direction in space.objectives.items() if name not in (space.metric, tuning.metric)
    }
    return SearchSpace(space.stage, {tuning.metric: "maximize", **rest}, space.parameters)


def _other_prior(settings: ExperimentSettings) -> bool:
    """Whether the student has a prior in whose place another one could stand."""
    student = settings.student
    return isinstance(student, NetworkSettings) and student.prior != "none" and bool(priors_beside(student, terms()))


def _switches_that_read_texts() -> set[str]:
    return {f"distill.{key}" for term in terms() if term.needs_texts for key in term.switches}


def _unsaid(settings: ExperimentSettings, space: SearchSpace) -> list[str]:
    """What is searched of terms that read a language model's embeddings, where no teacher has any."""
    if {LLM, TITLES} & set(settings.distill.teachers):
        return []
    reading = {
        f"distill.{key}" for term in terms() if term.needs_embeddings or term.needs_texts for key in term.own_keys()
    }
    return [key for key in space.parameters if key in reading]


def _check_kind(space: SearchSpace, tuning: TuningSettings, stage: Stage, path: Path) -> list[Problem]:
    problems = []
    if space.stage != stage:
        problems.append(Problem(f"{path.name}: stage", space.stage, f"this command searches stage {stage}"))
    return [*problems, *sampling_problems(tuning, space, path.name)]
