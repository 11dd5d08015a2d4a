"""An Optuna study is the record of a search: every decision is in it before anything acts on that decision.

A trial enters it as one record with all its parameters (measured: with several records, an interruption between them
shifts later draws). `optuna.load_study` and optuna-dashboard open the file.
"""

from __future__ import annotations

import json
import math
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from src.core.errors import ArtefactError
from src.core.paths import write_text
from src.tuning.samplers import make_pruner, make_sampler
from src.tuning.search_space import SearchSpace, Value
from src.tuning.settings import TuningSettings

SEARCH = "search"
#: the study of the fair protocol's final trainings
FINALS = "finals"
#: how the names of studies begin in which a search's best trials were trained on other seeds
FINALISTS = "finalists"
IDENTITY, METRICS, FIRST, CONTENT = "identity", "metrics", "first_trials", "content"
_NOTE, _NOTE_VERSION, _LONGEST_PIECE = "dashboard:note_str:", "dashboard:note_ver", 2045
_ARTIFACT = "artifacts:"  # where optuna.artifacts keeps what it knows of a file
_RUNG = "completed_rung_"  # what Optuna's successive halving and Hyperband write before they decide


def require_content(study: str, known: Mapping[str, Any], content: Mapping[str, str]) -> None:
    """Refuse a study whose trials learnt from other content; what only one of the two names may be anything.

    Args:
        study: its name.
        known: its attributes.
        content: fingerprints of what trials learn from now, by name.

    Raises:
        ArtefactError: a fingerprint differs.
    """
    before: Mapping[str, str] = known.get(CONTENT, {})
    other = [name for name, value in content.items() if before.get(name, value) != value]
    if other:
        rule = f"was started with another {' and another '.join(other)}: its trials would not be comparable"
        step = (
            "say where the earlier one is now (dataset.root, teacher.llm, distill.outputs_from), or start a new search"
        )
        raise ArtefactError.one("study", study, rule, step)


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """Completed trials, the best by the first objective first; the earlier one where two are equal."""
    sign = -1.0 if study.directions[0] == StudyDirection.MAXIMIZE else 1.0
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(completed, key=lambda trial: (sign * trial.values[0], trial.number))


def front(study: optuna.Study) -> list[int]:
    """Numbers of the trials that no other one beats in every objective."""
    return sorted(trial.number for trial in study.best_trials) if ranked(study) else []


@dataclass
class Record:
    """A study and what the search asks of it.

    ``fixed`` are the parameters of its first trials; ``protected`` of these are never stopped early. ``epochs`` is what
    a trial trains at most. A trial's value list follows ``space.objectives``.
    """

    study: optuna.Study
    space: SearchSpace
    settings: TuningSettings
    seed: int
    epochs: int
    fixed: Sequence[Mapping[str, Value]] = field(default_factory=list)
    protected: int = 0

    @classmethod
    def open(
        cls,
        storage: BaseStorage,
        name: str,
        space: SearchSpace,
        settings: TuningSettings,
        seed: int,
        epochs: int,
        identity: str,
        fixed: Sequence[Mapping[str, Value]] = (),
        protected: int = 0,
        content: Mapping[str, str] | None = None,
    ) -> Record:
        """The study ``name`` of a storage, made when it is not there.

        Pruning decisions that were lost between a value and the state that follows from it are made again.

        Args:
            storage: of Optuna.
            name: of the study.
            space: what is searched.
            settings: name sampler and pruner.
            seed: of the experiment.
            epochs: the most that a trial trains.
            identity: a fingerprint of the search.
            fixed: the trials that come before the sampler's.
            protected: how many of the first trials are never pruned.
            content: fingerprints of what trials learn from, by name.

        Raises:
            ArtefactError: the study belongs to another search.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        pruner = make_pruner(settings, epochs)
        if name in optuna.get_all_study_names(storage):  # `load_if_exists` would append a record at each start
            study = optuna.load_study(study_name=name, storage=storage, pruner=pruner)
        else:
            directions = list(space.objectives.values())
            study = optuna.create_study(storage=storage, study_name=name, directions=directions, pruner=pruner)
        record = cls(study, space, settings, seed, epochs, fixed, protected)
        record._claim(identity, content or {})
        for trial in record.running():
            record._decide_again(trial)
        return record

    def _claim(self, identity: str, content: Mapping[str, str]) -> None:
        known = self.study.user_attrs
        require_content(self.study.study_name, known, content)
        if known.get(IDENTITY, identity) != identity:
            rule = "belongs to another search: its space, sampler, seed or experiment differ"
            raise ArtefactError.one(
                "study", self.study.study_name, rule, "resume with the settings it was started with"
            )
        # the first trials are kept, because where they came from (an earlier result) may be gone on resume
        first = [dict(point) for point in self.fixed]
        if self.study.metric_names is None:  # what optuna-dashboard and Optuna's plots call the objectives
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self.study.set_metric_names(list(self.space.objectives))
        noted = {METRICS: list(self.space.objectives), FIRST: first, CONTENT: dict(content) or None, IDENTITY: identity}
        for key, value in noted.items():
            if value is not None and key not in known:
                self.study.set_user_attr(key, value)
        self.fixed = self.study.user_attrs[FIRST]

    # ------------------------------------------------------------------------------------------------ reading

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number (not copied)."""
        return self.study.get_trials(deepcopy=False)

    def running(self) -> list[FrozenTrial]:
        """Trials that were started and have not ended, by number."""
        return [trial for trial in self.trials() if trial.state == TrialState.RUNNING]

    def ended(self) -> int:
        """How many trials have ended."""
        return sum(trial.state.is_finished() for trial in self.trials())

    def ranked(self) -> list[FrozenTrial]:
        """Completed trials, the best by the first objective first; the earlier one where two are equal."""
        return ranked(self.study)

    def best(self) -> FrozenTrial | None:
        """The completed trial that is best by the first objective."""
        return next(iter(self.ranked()), None)

    def front(self) -> list[int]:
        """Numbers of the trials that no other one beats in every objective."""
        return front(self.study)

    # ------------------------------------------------------------------------------------------------ writing

    def ask(self) -> FrozenTrial:
        """A new RUNNING trial, fixed or drawn, written as one record."""
        trials = self.trials()
        number = len(trials)
        draft = self._draft(trials, make_sampler(self.settings, self.seed, number))
        if number < len(self.fixed):
            draft.enqueue_trial(dict(self.fixed[number]))
        self.space.suggest(draft.ask())
        self.study.add_trial(draft.get_trials(deepcopy=False)[number])
        return self.trials()[number]

    def write_value(self, number: int, epoch: int, value: float) -> bool:
        """Record an epoch's value of the first objective; one that is known already changes nothing.

        Args:
            number: of the trial.
            epoch: from 1.
            value: what was measured on validation.

        Returns:
            Whether the trial should be stopped.
        """
        trial = self.trials()[number]
        if epoch in trial.intermediate_values:
            return False
        # `Trial.report` refuses studies with several objectives, whose curves are wanted all the same
        self.study._storage.set_trial_intermediate_value(trial._trial_id, epoch, value)
        return self._may_stop(number, epoch) and optuna.trial.Trial(self.study, trial._trial_id).should_prune()

    def complete(self, number: int, values: Sequence[float], attributes: Mapping[str, Any]) -> None:
        """End a trial with its objectives; values that are not finite fail it.

        Args:
            number: of the trial.
            values: of the objectives, in the order of the search space.
            attributes: what else is kept of it.
        """
        self.note(number, attributes)
        if all(math.isfinite(value) for value in values):
            self.study.tell(number, list(values))
        else:
            self.fail(number, f"the objectives {list(self.space.objectives)} are {list(values)}")

    def prune(self, number: int) -> None:
        """End a trial as stopped early; its intermediate values stay."""
        self.study.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """End a trial as failed, with the reason on one line: tables and the screen have one for it."""
        self.note(number, {"failure": " ".join(reason.split())})
        self.study.tell(number, state=TrialState.FAIL)

    def note(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Write attributes of a running trial; those that it has from before an interruption are not written again."""
        trial = self.trials()[number]
        for key, value in attributes.items():
            if key not in trial.user_attrs or trial.user_attrs[key] != value:
                self.study._storage.set_trial_user_attr(trial._trial_id, key, value)

    def describe(self, text: str) -> None:
        """The study's note in optuna-dashboard (Markdown), in place of an earlier one.

        It lies where the dashboard looks for it, in pieces that every storage takes.
        """
        study, storage = self.study._study_id, self.study._storage
        known = storage.get_study_system_attrs(study)
        pieces = [text[start : start + _LONGEST_PIECE] for start in range(0, len(text), _LONGEST_PIECE)]
        earlier = sum(key.startswith(_NOTE) for key in known)
        storage.set_study_system_attr(study, _NOTE_VERSION, int(known.get(_NOTE_VERSION, 0)) + 1)
        for place in range(max(len(pieces), earlier)):
            storage.set_study_system_attr(study, f"{_NOTE}{place}", pieces[place] if place < len(pieces) else "")

    def attach(self, name: str, text: str, folder: Path) -> None:
        """A Markdown file of the study in optuna-dashboard, in place of an earlier one of that name.

        Args:
            name: of the file, as the dashboard shows it.
            text: its content.
            folder: what the dashboard is given as ``--artifact-dir``, which knows files by their ids alone.
        """
        # the same id each time: what Optuna's own upload draws would leave a file for every start
        number = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
        write_text(folder / number, text)
        about = {"artifact_id": number, "filename": name, "mimetype": "text/markdown", "encoding": "utf-8"}
        self.study._storage.set_study_system_attr(self.study._study_id, f"{_ARTIFACT}{number}", json.dumps(about))

    # ------------------------------------------------------------------------------------------------ in memory

    def _draft(self, trials: Sequence[FrozenTrial], sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
        """A copy in memory. Its name is the study's: Hyperband's brackets are a checksum of name and number."""
        draft = optuna.create_study(
            storage=InMemoryStorage(),
            study_name=self.study.study_name,
            directions=self.study.directions,
            sampler=sampler,
            pruner=self.study.pruner,
        )
        draft.add_trials(trials)
        return draft

    def _may_stop(self, number: int, epoch: int) -> bool:
        """After the last epoch there is nothing left to save by stopping."""
        return number >= self.protected and epoch < self.epochs and len(self.study.directions) == 1

    def _decide_again(self, trial: FrozenTrial) -> None:
        """Replay a running trial's values on a copy and prune it where the last of them said so.

        The pruner's own attributes are left out of the copy and those that are missing are written back: successive
        halving notes a rung before it decides on it.
        """
        if not (trial.intermediate_values and self._may_stop(trial.number, max(trial.intermediate_values))):
            return
        trials = self.trials()
        copy = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=trial.user_attrs,
            system_attrs={k: v for k, v in trial.system_attrs.items() if not k.startswith(_RUNG)},
        )
        draft = self._draft([*trials[: trial.number], copy, *trials[trial.number + 1 :]])
        again = optuna.trial.Trial(draft, draft.get_trials(deepcopy=False)[trial.number]._trial_id)
        stop = False
        for epoch, value in sorted(trial.intermediate_values.items()):
            again.report(value, epoch)
            stop = again.should_prune()
        for key, value in again.storage.get_trial_system_attrs(again._trial_id).items():
            if key not in trial.system_attrs:
                self.study._storage.set_trial_system_attr(trial._trial_id, key, value)
        if stop:
            self.prune(trial.number)
