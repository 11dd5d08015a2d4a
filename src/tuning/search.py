"""A whole search, told in order: open the record, run the trials and the finalists in a session, name the winner."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from src.core.errors import TrainingFailed
from src.core.logging import get_logger
from src.data.teacher_outputs import OutputsByTeachers
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages
from src.student.settings import NetworkSettings
from src.tuning.dispatch import Search
from src.tuning.finalists import Finalist, finalist_space, finalist_values, finalists_of, has_finalists, rank_finalists
from src.tuning.identity import identity_of, searched_content
from src.tuning.journal import open_journal
from src.tuning.samplers import sampler_note
from src.tuning.search_session import open_session
from src.tuning.search_settings import SearchSettings
from src.tuning.search_space import SearchSpace, Stage, Value
from src.tuning.settings import TuningSettings
from src.tuning.study import FINALISTS, SEARCH, Record
from src.tuning.trial_values import apply_values, configured_trial, neutral_trial, trial_values
from src.tuning.warm_start import warm_trials

_log = get_logger(__name__)


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
    #: better trials whose models are gone, in whose place ``best`` is published
    gone: Sequence[int] = ()


def open_search(
    storage: BaseStorage,
    experiment: ExperimentSettings,
    tuning: TuningSettings,
    content: Mapping[str, str],
    name: str,
    space: SearchSpace,
    first: Sequence[Mapping[str, Value]],
    values: Callable[[FrozenTrial], dict[str, Value]],
    trials: int,
    protected: int,
    place: str = "",
) -> Search:
    """A search over a journal, where an earlier start left it.

    Args:
        storage: the journal (see `open_journal`).
        experiment: what trials are trained with, apart from what is searched.
        tuning: sampler, early stopping, what is kept.
        content: fingerprints of what the trials learn from (see `searched_content`): what a search is follows from
            these, not from places.
        name: the study's.
        space: what is searched.
        first: the points of the first trials (a grid: of all).
        values: a trial's configuration keys.
        trials: how many in all.
        protected: how many of the first trials are never stopped early.
        place: what the names of the trials' folders begin with.

    Raises:
        ArtefactError: the journal is another search's.
    """
    if note := sampler_note(tuning, space):
        _log.debug("%s: %s", name, note)  # in the log file, for each arm's own space
    record = Record.open(
        storage,
        name,
        space,
        tuning,
        experiment.seed if tuning.seed is None else tuning.seed,
        epochs_of(experiment, space.stage),
        identity_of(experiment, space, tuning),
        first,
        protected,
        content,
    )
    return Search(record, trials, tuning.keep_top, values, place)


def open_finalists(
    storage: BaseStorage,
    experiment: ExperimentSettings,
    tuning: TuningSettings,
    content: Mapping[str, str],
    search: Search,
    seed: int,
    arm: str = "",
) -> tuple[list[FrozenTrial], Search] | None:
    """A search's best trials, and the search that trains them again on other seeds; None where the first value decides.

    Trials that are added to the search later get finalists of their own.

    Args:
        storage: the journal.
        experiment: what trials are trained with, apart from what is searched.
        tuning: how many finalists, on how many seeds.
        content: fingerprints of what the trials learn from.
        search: whose trials they are.
        seed: the last one that is used elsewhere: finalists have those after it.
        arm: whose search it is in the fair protocol.

    Raises:
        ArtefactError: the journal is another search's.
    """
    finalists, count = finalists_of(search, tuning.finalists), len(search.record.trials())
    if not finalists:
        return None
    space = finalist_space(search, finalists, seed, tuning.finalist_seeds)
    grid, values = space.grid(), partial(finalist_values, search)
    name = f"{FINALISTS} of {count} trials" + (f": {arm}" if arm else "")
    place = f"{FINALISTS}/{arm}_{count}_" if arm else f"{FINALISTS}/{count}_"
    retrained = open_search(
        storage, experiment, tuning, content, name, space, grid, values, len(grid), len(grid), place
    )
    retrained.keep, retrained.what, retrained.unit = 0, "finalists", "training"
    return finalists, retrained


def epochs_of(settings: ExperimentSettings, stage: Stage) -> int:
    """How many epochs a trial of this stage trains at most."""
    if stage == "teacher":
        return settings.teacher.train.loop.epochs
    return settings.student.loop.epochs if isinstance(settings.student, NetworkSettings) else 1


def first_trials(
    settings: SearchSettings, experiment: ExperimentSettings, space: SearchSpace
) -> list[dict[str, Value]]:
    """The baseline (distillation switched off) or the configuration, then the best of ``warm_start``; a whole grid.

    Args:
        settings: of the search.
        experiment: the settings that the trials start from.
        space: what is searched.
    """
    if settings.tuning.sampler == "grid":
        grid = space.grid()
        _log.info("a grid of %d points (trials=%d is not used)", len(grid), settings.trials)
        return grid
    start = neutral_trial(space, experiment) if space.stage == "distill" else configured_trial(space, experiment)
    warm = settings.warm_start
    return [start, *(warm_trials(warm, space, settings.tuning.warm_start_trials) if warm is not None else [])]


@contextmanager
def run_search(
    settings: SearchSettings,
    stages: Stages,
    space: SearchSpace,
    first: Sequence[Mapping[str, Value]],
    outputs: OutputsByTeachers,
    folder: Path,
) -> Iterator[SearchOutcome]:
    """Search, and yield the outcome while the models are still in reach.

    Args:
        settings: how the search runs.
        stages: the experiment; what its trials take from the cache is there.
        space: what is searched.
        first: the points of the first trials (see `first_trials`).
        outputs: what each set of teachers says.
        folder: the result folder.

    Raises:
        TrainingFailed: no trial completed.
        Paused: the search was ended before it was through.
    """
    start, experiment, tuning = time.perf_counter(), stages.settings, settings.tuning
    stage, grid = space.stage, tuning.sampler == "grid"

    def values(trial: FrozenTrial) -> dict[str, Value]:
        # a grid's first point is a point like any other
        return trial_values(stage, experiment, 1 if grid else trial.number, trial.params)

    content = searched_content(stage, stages, outputs)
    trials, protected = (len(first), 0) if grid else (settings.trials, 1)
    storage = open_journal(folder)
    search = open_search(storage, experiment, tuning, content, SEARCH, space, first, values, trials, protected)
    with open_session(settings, folder, stages, outputs, space, configured_trial(space, experiment)) as session:
        # a finalist that turns out to be the best one must have its model still
        search.keep = max(search.keep, settings.tuning.finalists)
        first_name = "no distillation" if stage == "distill" and not grid else ""
        finalists: list[Finalist] = []

        def phases() -> Iterator[Sequence[Search]]:
            yield [search]
            winner(search)
            if opened := open_finalists(storage, experiment, tuning, content, search, experiment.seed):
                chosen, retrained = opened
                yield [retrained]
                finalists.extend(rank_finalists(search, retrained, chosen))

        session.work_through(phases(), first_name, _what_follows(search, tuning))
        best, model, gone = published(search, finalists, lambda number: session.fetch(search, number))
        found, seconds = apply_values(experiment, values(best)), time.perf_counter() - start
        yield SearchOutcome(search, best, found, model, seconds, finalists, gone)


def _what_follows(search: Search, tuning: TuningSettings) -> str:
    """What the screen says of the finalists while they are not known yet."""
    if not has_finalists(search.record.space, tuning.finalists):
        return ""
    return f"then {tuning.finalists * tuning.finalist_seeds} trainings of the finalists"


def published(
    search: Search, finalists: Sequence[Finalist], fetch: Callable[[int], Path | None]
) -> tuple[FrozenTrial, Path, list[int]]:
    """The winner, or the next best whose model is whole, which is told; its model; and the better ones without one.

    Args:
        search: whose trials they are.
        finalists: the best mean first; none where the first value decides.
        fetch: gives a trial's model; None where it is gone or damaged.

    Raises:
        TrainingFailed: no completed trial has its model.
    """
    by_number = {trial.number: trial for trial in search.record.ranked()}
    order = list(dict.fromkeys([*(finalist.number for finalist in finalists), *by_number]))
    for place, number in enumerate(order):
        if (model := fetch(number)) is not None:
            if place:
                _log.warning("the model of trial %d is gone: trial %d is published in its place", order[0], number)
            return by_number[number], model, order[:place]
    raise TrainingFailed("no completed trial has its model any more: start a new search, or restore trials/")


def winner(search: Search) -> FrozenTrial:
    """The best completed trial; raises ``TrainingFailed`` with the reasons when there is none."""
    best = search.record.best()
    if best is None:
        failed = [trial for trial in search.record.trials() if trial.state == TrialState.FAIL]
        reasons = {str(trial.user_attrs.get("failure", "unknown")) for trial in failed}
        raise TrainingFailed(f"no trial completed; reasons: {'; '.join(sorted(reasons)) or 'all were stopped early'}")
    return best
