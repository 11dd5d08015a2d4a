"""A whole search, told in order: check the space, run the trials, name the winner."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from src.core.errors import ConfigError, Problem, ProblemsFound, TrainingFailed
from src.core.logging import get_logger
from src.core.metrics import metric_names
from src.data.teacher_outputs import TeacherOutputs
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages, fit_of
from src.tuning.applied import check_values, first_trial, plain, trial_settings
from src.tuning.executor import Board, execute
from src.tuning.progress import Screen
from src.tuning.search_space import SearchSpace, load_search_space
from src.tuning.settings import TuningSettings
from src.tuning.study import Record
from src.tuning.trainable import STUDENT, Trainable, TrialData

_log = get_logger(__name__)

TRIALS = "trials"


@dataclass(frozen=True, eq=False)
class SearchOutcome:
    """The winner and the record it stands in."""

    record: Record
    best: FrozenTrial
    settings: ExperimentSettings
    student_folder: Path
    seconds: float
    reproduces_baseline: bool

    @property
    def student_seconds(self) -> float:
        """Seconds that the winning trial trained."""
        return float(self.best.user_attrs["seconds"])


def prepare_space(settings: ExperimentSettings, tuning: TuningSettings) -> SearchSpace:
    """Load and check the search space; raises ``ConfigError`` with every problem, before anything is trained."""
    names = metric_names(settings.evaluation.ks)
    problems: list[Problem] = []
    if tuning.metric and tuning.metric not in names:
        problems.append(Problem("tuning.metric", tuning.metric, f"must be one of {', '.join(names)}"))
    cores = os.cpu_count() or 1
    if tuning.cpu_per_trial > cores:
        rule = f"this machine has {cores} cores: no trial could ever start"
        problems.append(Problem("tuning.cpu_per_trial", tuning.cpu_per_trial, rule, "lower it"))
    try:
        space = load_search_space(tuning.search_space, plain(settings), names)
        check_values(space, settings)
        first_trial(space, settings)
    except ProblemsFound as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return SearchSpace(tuning.metric or space.metric, space.parameters)


def run_search(
    stages: Stages, outputs: TeacherOutputs, space: SearchSpace, tuning: TuningSettings, folder: Path
) -> SearchOutcome:
    """Search in ``folder`` (the study and the trials' folders are made there).

    Raises ``TrainingFailed`` when no trial completed.
    """
    settings, start = stages.settings, time.perf_counter()
    record = Record.create(folder, space, tuning, settings.seed)
    gpus = 1 if stages.device.type == "cuda" else 0
    screen = Screen(record, tuning.trials)
    search_board = Board(
        record, first_trial(space, settings), tuning.trials, folder / TRIALS, tuning.keep_top, screen.update
    )
    trainable = Trainable(settings, space.metric, folder / TRIALS)
    with screen:
        execute(search_board, trainable, TrialData.of(stages.data, outputs), tuning, gpus)
    ended = sum(trial.state.is_finished() for trial in record.trials())
    if ended < tuning.trials:
        raise TrainingFailed(
            f"the search was interrupted after {ended} of {tuning.trials} trials; {folder} is unfinished"
        )
    best = record.best()
    if best is None:
        reasons = {t.user_attrs.get("failure", "unknown") for t in record.trials() if t.state == TrialState.FAIL}
        raise TrainingFailed(f"no trial completed; reasons: {'; '.join(sorted(reasons)) or 'all were stopped early'}")
    return SearchOutcome(
        record=record,
        best=best,
        settings=trial_settings(settings, best.number, best.params),
        student_folder=folder / TRIALS / str(best.number) / STUDENT,
        seconds=time.perf_counter() - start,
        reproduces_baseline=_reproduces_baseline(stages, record),
    )


def _reproduces_baseline(stages: Stages, record: Record) -> bool:
    """Whether the first trial, without distillation, gave the baseline's metrics to the last digit."""
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
