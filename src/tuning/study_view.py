"""The studies of a result folder's journal, read and never written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from src.core.result_files import JOURNAL
from src.tuning.journal import read_journal
from src.tuning.study import FINALISTS, FINALS, SEARCH, ranked


@dataclass(frozen=True)
class StudyView:
    """One study with its trials by number; ``metrics`` are its objectives' names, in the order of a trial's values."""

    name: str
    title: str
    study: optuna.Study
    metrics: Sequence[str]
    trials: Sequence[FrozenTrial]
    #: the number of the trial that won, where the result names it: with finalists it need not have the best value
    winner: int | None = None

    @property
    def distinct(self) -> bool:
        """Whether this is a search of its own rather than the final trainings of several searches."""
        return self.name != FINALS and not self.name.startswith(FINALISTS)

    def best(self) -> FrozenTrial | None:
        """The trial that won; before one has, the best by the first objective, the earlier one where two are equal."""
        completed = ranked(self.study)
        return next((trial for trial in completed if trial.number == self.winner), next(iter(completed), None))

    def first(self) -> FrozenTrial | None:
        """Trial 0, where it completed: in a search over distillation the student alone."""
        return next((trial for trial in self.completed() if trial.number == 0), None)

    def completed(self) -> list[FrozenTrial]:
        """Trials that reached their end, by number."""
        return [trial for trial in self.trials if trial.state == TrialState.COMPLETE]

    def used(self) -> list[str]:
        """The searched parameters that a completed trial has used."""
        return [key for key in self.parameters() if any(key in trial.params for trial in self.completed())]

    def parameters(self) -> dict[str, BaseDistribution]:
        """Everything that was searched, in the order of first appearance; points of a single value are left out."""
        found: dict[str, BaseDistribution] = {}
        for trial in self.trials:
            found |= {key: kind for key, kind in trial.distributions.items() if key not in found}
        return {key: kind for key, kind in found.items() if not kind.single()}


def read_studies(folder: Path, manifest: Mapping[str, Any], fair: Mapping[str, Any] | None) -> list[StudyView]:
    """The studies of a folder's journal, in the order they were begun; none when there is no journal.

    Args:
        folder: the result folder.
        manifest: its manifest, which names the metric of a study that does not.
        fair: the content of `fair.json`, which titles the arms and names their finalists; None where there is none.
    """
    if not (folder / JOURNAL).exists():
        return []
    storage = read_journal(folder / JOURNAL)
    metric = (fair or manifest.get("search") or {}).get("metric", "objective")
    arms = (fair or {}).get("arms", [])
    titles = {arm["arm"]: arm.get("title", arm["arm"]) for arm in arms}
    winners = {SEARCH: (manifest.get("search") or {}).get("best_trial")}
    winners |= {arm["arm"]: arm["finalists"][0].get("trial") for arm in arms if arm.get("finalists")}
    found = []
    for name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        names = study.user_attrs.get("metrics") or [metric]
        metrics = [*names, *(f"objective {i}" for i in range(len(names), len(study.directions)))]
        trials = study.get_trials(deepcopy=False)
        found.append(StudyView(name, titles.get(name, name), study, metrics, trials, winners.get(name)))
    return found
