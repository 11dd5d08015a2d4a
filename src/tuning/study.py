"""The Optuna study is the record of a search: a journal file in the result folder, written as the search goes.

A trial enters it as one record with all its parameters (measured: with several records, an interruption between them
shifts later draws). `optuna.load_study` and optuna-dashboard open the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from src.core.seed import derive_seed
from src.tuning.search_space import SearchSpace, Value
from src.tuning.settings import TuningSettings

JOURNAL = "study.journal"
STUDY_NAME = "search"


def _sampler(settings: TuningSettings, seed: int, number: int) -> optuna.samplers.BaseSampler:
    """A sampler whose draws depend on the study's seed and the trial's number alone."""
    own = derive_seed(seed, "sampler", number) % 2**32
    if settings.sampler == "random":
        return optuna.samplers.RandomSampler(seed=own)
    return optuna.samplers.TPESampler(n_startup_trials=settings.startup_trials, seed=own)


def make_pruner(settings: TuningSettings) -> optuna.pruners.BasePruner:
    """Optuna's rule that stops poor trials."""
    if settings.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(settings.pruner_startup_trials, settings.pruner_warmup_epochs)


@dataclass
class Record:
    """The study and what the search asks of it. All values are maximised."""

    study: optuna.Study
    space: SearchSpace
    settings: TuningSettings
    seed: int

    @classmethod
    def create(cls, folder: Path, space: SearchSpace, settings: TuningSettings, seed: int) -> Record:
        """A new study in ``folder/study.journal``."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        study = optuna.create_study(
            storage=storage, study_name=STUDY_NAME, direction="maximize", pruner=make_pruner(settings)
        )
        return cls(study, space, settings, seed)

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number (not copied)."""
        return self.study.get_trials(deepcopy=False)

    def ask(self, fixed: Mapping[str, Value] | None = None) -> FrozenTrial:
        """A new RUNNING trial, with ``fixed`` parameters or drawn ones, written as one record."""
        trials = self.trials()
        draft = optuna.create_study(
            storage=InMemoryStorage(),
            study_name=STUDY_NAME,
            direction="maximize",
            sampler=_sampler(self.settings, self.seed, len(trials)),
        )
        draft.add_trials(trials)
        if fixed is not None:
            draft.enqueue_trial(dict(fixed))
        self.space.suggest(draft.ask())
        self.study.add_trial(draft.get_trials(deepcopy=False)[len(trials)])
        return self.trials()[len(trials)]

    def write_value(self, number: int, epoch: int, value: float) -> bool:
        """Record an epoch's value; returns whether the trial should be stopped. The first trial never is."""
        frozen = self.trials()[number]
        trial = optuna.trial.Trial(self.study, frozen._trial_id)
        trial.report(value, epoch)
        return number != 0 and trial.should_prune()

    def complete(self, number: int, value: float, attributes: Mapping[str, Any]) -> None:
        """End a trial with its best value; a value that is not finite fails it."""
        self._describe(number, attributes)
        if math.isfinite(value):
            self.study.tell(number, value)
        else:
            self.fail(number, f"the objective is {value}")

    def prune(self, number: int) -> None:
        """End a trial as stopped early; its intermediate values stay."""
        self.study.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """End a trial as failed, with the reason."""
        self._describe(number, {"failure": reason})
        self.study.tell(number, state=TrialState.FAIL)

    def is_running(self, number: int) -> bool:
        """Whether a trial has not ended."""
        return self.trials()[number].state == TrialState.RUNNING

    def best(self) -> FrozenTrial | None:
        """The completed trial with the highest value; the earlier one where two are equal."""
        completed = [t for t in self.trials() if t.state == TrialState.COMPLETE]
        return max(completed, key=lambda t: (t.value, -t.number), default=None)

    def _describe(self, number: int, attributes: Mapping[str, Any]) -> None:
        trial_id = self.trials()[number]._trial_id
        for key, value in attributes.items():
            self.study._storage.set_trial_user_attr(trial_id, key, value)
