"""A whole search, told in order: check the space, open the record, run the trials, name the winner."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from src.core.data_utils import fingerprint
from src.core.errors import ArtefactError, ConfigError, Paused, Problem, ProblemsFound, TrainingFailed
from src.core.logging import get_logger
from src.core.memory import give_back
from src.core.metrics import metric_names
from src.core.paths import REPOSITORY
from src.data.teacher_outputs import TeacherOutputs, Teachings
from src.distill.settings import terms
from src.distill.teachers import LLM, TITLES
from src.pipeline.settings import ExperimentSettings, without_places
from src.pipeline.stages import Stages, fit_of
from src.student.settings import NetworkSettings
from src.tuning.applied import (
    apply_values,
    check_values,
    configured_trial,
    fitting,
    neutral_trial,
    plain,
    trial_values,
)
from src.tuning.dispatch import MODEL, Dispatcher, Search
from src.tuning.executor import execute
from src.tuning.finalists import Finalist, final_space, final_values, finalists_of, judge_finalists
from src.tuning.journal import JOURNAL, open_journal, read_journal
from src.tuning.processes import end_survivors, graceful_signals
from src.tuning.progress import Screen
from src.tuning.ray_session import check_shared, ray_session
from src.tuning.resources import Resources, decide
from src.tuning.samplers import sampler_note
from src.tuning.search_space import SearchSpace, Stage, Value
from src.tuning.settings import RaySettings, TuningSettings
from src.tuning.shared_data import FOLDER, SharedData
from src.tuning.space_document import load_search_space
from src.tuning.store import Store, folder_bytes, own_store
from src.tuning.study import SEARCH, Record, require_content
from src.tuning.trainable import TOKEN, Trainable

_log = get_logger(__name__)

TRIALS = "trials"


# ---------------------------------------------------------------------------------------------------- before training


def space_document(tuning: TuningSettings, document: str) -> Path:
    """The search space's file: the one that the settings name, or ``document`` in `search_spaces/`."""
    return tuning.search_space or REPOSITORY / "search_spaces" / f"{document}.yaml"


def prepare_space(settings: ExperimentSettings, tuning: TuningSettings, stage: Stage, document: str) -> SearchSpace:
    """Load and check the search space; raises ``ConfigError`` with every problem, before anything is trained.

    ``document`` is the stage's own in `search_spaces/`, where the settings name none.
    """
    ks = settings.evaluation.ks
    names = settings.teacher.epoch_metrics(ks) if stage == "teacher" else metric_names(ks)
    problems: list[Problem] = []
    if tuning.metric and tuning.metric not in names:
        problems.append(Problem("tuning.metric", tuning.metric, f"must be one of {', '.join(names)}"))
    try:
        path = space_document(tuning, document)
        space = load_search_space(path, plain(settings), names)
        if unsaid := _unsaid(settings, space):
            if tuning.search_space is not None:
                rule, step = "no teacher has embeddings", "leave it out, or name llm among distill.teachers"
                raise ConfigError([Problem(path.name, key, rule, step) for key in unsaid])
            space = space.only(key for key in space.parameters if key not in unsaid)
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


def _unsaid(settings: ExperimentSettings, space: SearchSpace) -> list[str]:
    """What is searched of terms that read embeddings, where no teacher has any."""
    if {LLM, TITLES} & set(settings.distill.teachers):
        return []
    reading = {f"distill.{key}" for term in terms() if term.needs_embeddings for key in term.own_keys()}
    return [key for key in space.parameters if key in reading]


def _check_kind(space: SearchSpace, tuning: TuningSettings, stage: Stage, path: Path) -> list[Problem]:
    problems = []
    if space.stage != stage:
        problems.append(Problem(f"{path.name}: stage", space.stage, f"this command searches stage {stage}"))
    if len(space.objectives) > 1 and tuning.pruner != "none":
        rule = f"early stopping needs a single objective; {path.name} has {', '.join(space.objectives)}"
        problems.append(Problem("tuning.pruner", tuning.pruner, rule, "tuning.pruner=none"))
    if len(space.objectives) > 1 and tuning.sampler == "cmaes":
        problems.append(Problem("tuning.sampler", "cmaes", "works on one objective", "tuning.sampler=tpe"))
    return problems


def check_resources(tuning: TuningSettings, ray: RaySettings) -> None:
    """Raises ``ConfigError`` when no trial could ever start on this machine."""
    cores = os.cpu_count() or 1
    if tuning.cpu_per_trial > cores and not ray.address:
        rule = f"this machine has {cores} cores: no trial could ever start"
        raise ConfigError.one("tuning.cpu_per_trial", tuning.cpu_per_trial, rule, "lower it")


def with_threads(settings: ExperimentSettings, tuning: TuningSettings) -> ExperimentSettings:
    """A trial computes with as many threads as it occupies cores; so does the baseline, which a trial repeats."""
    return apply_values(settings, {"student.threads": max(1, int(tuning.cpu_per_trial))})


def warm_trials(folder: Path, space: SearchSpace, count: int) -> list[dict[str, Value]]:
    """The best trials of an earlier result as points of this space, best first.

    Raises ``ArtefactError`` when it holds no study, or none of its parameters is searched here.
    """
    journal = folder / JOURNAL
    if not journal.is_file():
        step = "name the result folder of a search"
        raise ArtefactError.one("warm_start", str(folder), f"holds no {JOURNAL}", step)
    backend = read_journal(journal)
    try:
        studies = optuna.get_all_study_names(backend)
        study = optuna.load_study(study_name=SEARCH if SEARCH in studies else "everything", storage=backend)
    except (KeyError, ValueError) as error:
        raise ArtefactError.one("warm_start", str(folder), f"its study cannot be read ({error})") from None
    sign = -1.0 if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else 1.0
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best = sorted(completed, key=lambda trial: (sign * trial.values[0], trial.number))
    points = [point for trial in best if (point := fitting(space, trial.params)) is not None]
    if not points:
        rule = f"none of its completed trials has a parameter of this search: {', '.join(space.parameters)}"
        raise ArtefactError.one("warm_start", str(folder), rule)
    return points[:count]


# ---------------------------------------------------------------------------------------------------- the workshop


@dataclass(frozen=True, eq=False)
class Workplace:
    """Where and how a search runs. The caller holds `journal.single_driver` of ``folder``."""

    folder: Path
    tuning: TuningSettings
    ray: RaySettings
    dashboard: bool = False
    storage: str = ""


@dataclass
class Workshop:
    """A running Ray session with a search's data in place."""

    place: Workplace
    store: Store
    trainable: Trainable
    resources: Resources
    scratch: Path
    interrupted: str = ""
    _dispatcher: Dispatcher | None = field(default=None)

    def work_through(self, searches: Sequence[Search], first_name: str = "") -> None:
        """Run the searches' trials until each has its number; raises ``Paused`` when something stops that."""
        screen = Screen(searches, first_name)
        retries = self.place.tuning.retries
        self._dispatcher = Dispatcher(searches, self.store, retries, screen.update, self._over_bound, self.interrupted)
        with screen:
            elastic = bool(self.place.ray.address)
            execute(self._dispatcher, self.trainable, self.resources, self.place.folder, self.scratch, elastic)

    def interrupt(self, reason: str) -> None:
        """End in order (a signal's handler calls this)."""
        self.interrupted = reason
        if self._dispatcher is not None:
            self._dispatcher.halt(reason)

    def _over_bound(self) -> str:
        bound = self.place.tuning.max_folder_mb
        used = folder_bytes(self.place.folder) / 2**20 if bound else 0.0
        if used <= bound:
            return ""
        return f"the result folder holds {used:.0f} MB of tuning.max_folder_mb={bound}; raise it to go on"

    def fetch(self, search: Search, number: int) -> Path:
        """A trial's model on this machine."""
        name = f"{search.folder(number)}/{MODEL}"
        return self.store.download(name, self.scratch / "models" / name)


@contextmanager
def open_workshop(
    place: Workplace,
    stages: Stages,
    outputs: Teachings,
    space: SearchSpace,
    probe: Mapping[str, Value],
) -> Iterator[Workshop]:
    """Ray, the trials' store and the shared data, for the block. ``probe`` is measured where trials share a GPU."""
    end_survivors(place.folder)
    with (
        own_store(place.folder, TRIALS, place.storage) as store,
        _workshop(place, stages, outputs, space, probe, store) as shop,
    ):
        yield shop


@contextmanager
def _workshop(
    place: Workplace, stages: Stages, outputs: Teachings, space: SearchSpace, probe: Mapping[str, Value], store: Store,
) -> Iterator[Workshop]:  # fmt: skip
    token = secrets.token_hex(16)
    store.write(TOKEN, token.encode())  # from here on a worker of an earlier start writes nothing more
    store.sweep()
    SharedData.of(stages.data, outputs, stages.prior, stages.item_text, stages.text_source).save(store)
    give_back(stages.device)
    try:
        with ray_session(place.ray, place.dashboard, stages.settings.runtime.device, place.folder) as scratch:
            if place.ray.address:
                check_shared(store)
            trainable = Trainable(stages.settings, space, store, token, place.tuning.stall_minutes)
            shop = Workshop(place, store, trainable, Resources(place.tuning.cpu_per_trial, 0.0), scratch)
            with graceful_signals(shop.interrupt):
                shop.resources = decide(place.tuning, stages.settings, space, probe, store)
                yield shop
                if shop.interrupted:  # while the winner was being published
                    raise Paused(shop.interrupted)
    finally:
        store.remove(FOLDER)
        store.remove(TOKEN)
        store.sweep()


# ---------------------------------------------------------------------------------------------------- one search


@dataclass(frozen=True, eq=False)
class SearchOutcome:
    """The winner and the record it stands in."""

    search: Search
    best: FrozenTrial
    settings: ExperimentSettings
    model_folder: Path
    seconds: float
    #: the best trials on other seeds, the best mean first; none where the first value decided
    finalists: Sequence[Finalist] = ()


@dataclass(frozen=True, eq=False)
class SearchPlan:
    """What is searched: ``trials`` in all, ``first`` of them given (a grid: all of them), ``protected`` not pruned."""

    name: str
    settings: ExperimentSettings
    space: SearchSpace
    trials: int
    first: Sequence[Mapping[str, Value]]
    protected: int
    place: str = ""
    #: fingerprints of what the trials learn from (`content_of`): what a search is follows from these, not from places
    content: Mapping[str, str] = field(default_factory=dict)

    def open(self, storage: Any, tuning: TuningSettings, values: Callable[[FrozenTrial], dict[str, Value]]) -> Search:
        """The search over a journal; raises ``ArtefactError`` when the journal is another search's."""
        space, settings = self.space, self.settings
        if note := sampler_note(tuning, space):
            _log.debug("%s: %s", self.name, note)  # in the log file, for each arm's own space
        epochs = epochs_of(settings, space.stage)
        rules = [
            tuning.sampler, tuning.seed, tuning.startup_trials, tuning.pruner, tuning.pruner_startup_trials,
            tuning.pruner_warmup_epochs, tuning.reduction_factor,
        ]  # fmt: skip
        shape = {key: str(parameter) for key, parameter in space.parameters.items()}
        described = {"stage": space.stage, "objectives": list(space.objectives.items()), "space": shape}
        identity = fingerprint(described, without_places(settings), rules)
        seed = settings.seed if tuning.seed is None else tuning.seed
        record = Record.open(
            storage, self.name, space, tuning, seed, epochs, identity, self.first, self.protected, self.content
        )
        return Search(record, self.trials, tuning.keep_top, values, self.place)


def epochs_of(settings: ExperimentSettings, stage: Stage) -> int:
    """How many epochs a trial of this stage trains at most."""
    if stage == "teacher":
        return settings.teacher.train.loop.epochs
    return settings.student.loop.epochs if isinstance(settings.student, NetworkSettings) else 1


def content_of(stages: Stages, outputs: Teachings) -> dict[str, str]:
    """Fingerprints of what trials learn from: the data and all that each teacher says."""
    taught = {f"teacher outputs ({name})": _said(found) for name, found in outputs.items()}
    text = {} if stages.item_text is None else {"texts of items": fingerprint(stages.item_text)}
    return {**stages.data.fingerprints(), **taught, **text}


def _said(outputs: TeacherOutputs) -> str:
    # a saved folder's files were fingerprinted when they were written, and looked at when they were read
    if files := outputs.manifest.get("files"):
        return fingerprint(files)
    return fingerprint(
        outputs.example_id, outputs.candidates, outputs.distances, outputs.sequence_embedding, outputs.item_embedding
    )


def searched_content(stage: Stage, stages: Stages, outputs: Teachings) -> dict[str, str]:
    """`content_of` of a search; a search over the teacher learns from the language model, too."""
    content = content_of(stages, outputs)
    if stage == "teacher":
        from src.teacher.llm import fingerprint_llm  # imports transformers: only such a search waits for it

        content["language model"] = fingerprint_llm(stages.llm_folder)
    return content


def check_content(folder: Path, content: Mapping[str, str]) -> None:
    """Look at a search that was begun here, before anything is trained for it.

    Raises ``ArtefactError`` when it was started with other content, or when its journal is damaged.
    """
    if not (folder / JOURNAL).is_file():
        return
    storage = read_journal(folder / JOURNAL)
    for study in storage.get_all_studies():
        require_content(study.study_name, study.user_attrs, content)


def plan_search(
    settings: ExperimentSettings, space: SearchSpace, tuning: TuningSettings, trials: int, warm: Path | None
) -> SearchPlan:
    """One search over a stage: the first trial is the baseline (distillation switched off), or the configuration."""
    if tuning.sampler == "grid":
        grid = space.grid()
        _log.info("a grid of %d points (trials=%d is not used)", len(grid), trials)
        return SearchPlan(SEARCH, settings, space, len(grid), grid, 0)
    start = neutral_trial(space, settings) if space.stage == "distill" else configured_trial(space, settings)
    warmed = warm_trials(warm, space, tuning.warm_start_trials) if warm is not None else []
    return SearchPlan(SEARCH, settings, space, max(trials, 1), [start, *warmed], 1)


@contextmanager
def run_search(place: Workplace, plan: SearchPlan, stages: Stages, outputs: Teachings) -> Iterator[SearchOutcome]:
    """Search, and yield the outcome while the models are still in reach.

    Raises ``TrainingFailed`` when no trial completed, ``Paused`` when the search was ended before it was through.
    """
    start, stage, given = time.perf_counter(), plan.space.stage, place.tuning.sampler == "grid"

    def values(trial: FrozenTrial) -> dict[str, Value]:
        # a grid's first point is a point like any other
        return trial_values(stage, plan.settings, 1 if given else trial.number, trial.params)

    plan = replace(plan, content=searched_content(plan.space.stage, stages, outputs))
    search = plan.open(open_journal(place.folder), place.tuning, values)
    probe = configured_trial(plan.space, plan.settings)
    with open_workshop(place, stages, outputs, plan.space, probe) as shop:
        shop.work_through([search], "no distillation" if stage == "distill" and not given else "")
        winner(search)
        finalists = _finalists(shop, plan, search)
        best = _published(shop, search, finalists)
        settings, model = apply_values(plan.settings, values(best)), shop.fetch(search, best.number)
        yield SearchOutcome(search, best, settings, model, time.perf_counter() - start, finalists)


def _finalists(shop: Workshop, plan: SearchPlan, search: Search) -> list[Finalist]:
    """Train the best trials on other seeds; the best mean first. Trials that are added get finals of their own."""
    tuning = shop.place.tuning
    chosen = finalists_of(search, tuning.finalists)
    if not chosen:
        return []
    name = f"finalists of {len(search.record.trials())} trials"
    space = final_space(search, chosen, plan.settings.seed, tuning.finalist_seeds)
    grid = space.grid()
    place = f"finalists/{len(search.record.trials())}_"
    finals_plan = replace(plan, name=name, space=space, trials=len(grid), first=grid, protected=len(grid), place=place)
    finals = finals_plan.open(open_journal(shop.place.folder), tuning, lambda trial: final_values(search, trial))
    finals.keep = 0
    shop.work_through([finals])
    return judge_finalists(search, finals, chosen)


def _published(shop: Workshop, search: Search, finalists: Sequence[Finalist]) -> FrozenTrial:
    """The winner, or the next best whose model is still there; raises ``TrainingFailed`` when none is."""
    by_number = {trial.number: trial for trial in search.record.ranked()}
    order = list(dict.fromkeys([*(finalist.number for finalist in finalists), *by_number]))
    for place, number in enumerate(order):
        if shop.store.exists(f"{search.folder(number)}/{MODEL}"):
            if place:
                _log.warning("the model of trial %d is gone: trial %d is published in its place", order[0], number)
            return by_number[number]
    raise TrainingFailed("no completed trial has its model any more: start a new search, or restore trials/")


def winner(search: Search) -> FrozenTrial:
    """The best completed trial; raises ``TrainingFailed`` with the reasons when there is none."""
    best = search.record.best()
    if best is None:
        failed = [trial for trial in search.record.trials() if trial.state == TrialState.FAIL]
        reasons = {str(trial.user_attrs.get("failure", "unknown")) for trial in failed}
        raise TrainingFailed(f"no trial completed; reasons: {'; '.join(sorted(reasons)) or 'all were stopped early'}")
    return best


def reproduces_baseline(stages: Stages, record: Record) -> bool | None:
    """Whether the first trial, without distillation, gave the baseline's metrics to the last digit; None for a grid."""
    if record.settings.sampler == "grid":
        return None
    first = record.trials()[0]
    baseline: dict[str, Any] = fit_of(stages.baseline).best_metrics
    if first.state != TrialState.COMPLETE:
        _log.warning("the no-distillation trial did not complete: %s", first.user_attrs.get("failure"))
        return False
    found = first.user_attrs["metrics"]
    same = all(found[name] == value for name, value in baseline.items())
    if not same:
        _log.warning("the no-distillation trial differs from the baseline: %s against %s", found, baseline)
    return same
