"""protocol=fair: did distillation help? Every arm gets the same trials, epochs and shared space, and several seeds.

Arms are searched on validation; each arm's configuration is chosen among its best few by their mean over other seeds,
as that of a single search is, and trained again on seeds that had no part in any choice; the test split is opened once,
for all of them together.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from src.core.errors import ConfigError, TrainingFailed
from src.core.logging import get_logger
from src.core.seed import numpy_generator
from src.data.teacher_outputs import OutputsByTeachers
from src.evaluation.paired import compare, gain, mean_interval, named_users
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages
from src.tuning.arms import STUDENT, Arm, arms_of, fixed_values, space_of
from src.tuning.dispatch import Search
from src.tuning.finalists import (
    STUDENT_SEED,
    Finalist,
    finalist_lines,
    rank_finalists,
)
from src.tuning.identity import content_of
from src.tuning.journal import open_journal
from src.tuning.kept_models import train_again
from src.tuning.search import open_finalists, open_search, winner
from src.tuning.search_session import SearchSession, open_session
from src.tuning.search_settings import SearchSettings
from src.tuning.search_space import CategoricalParameter, IntParameter, SearchSpace, Value
from src.tuning.settings import TuningSettings
from src.tuning.study import FINALS
from src.tuning.trial_values import apply_values, configured_trial

_log = get_logger(__name__)

ARM, SEED = "arm", "seed"


@dataclass(frozen=True, eq=False)
class FairSearch:
    """The arms' searches and the final trainings, over one journal."""

    arms: Mapping[str, Search]
    described: Sequence[Arm]
    finals: Search
    off: Mapping[str, dict[str, Value]]
    settings: ExperimentSettings
    #: each arm's finalists, the best mean first; filled before the final trainings begin, empty where one value decided
    finalists: dict[str, list[Finalist]]

    def chosen(self, arm: str) -> FrozenTrial:
        """The trial whose configuration stands for an arm; raises ``TrainingFailed`` when it completed none."""
        best, finalists = winner(self.arms[arm]), self.finalists.get(arm)
        return self.arms[arm].record.trials()[finalists[0].number] if finalists else best

    def why_not(self, arm: str) -> str:
        """Why an arm cannot be judged; empty for one of which every training came to its end."""
        try:
            winner(self.arms[arm])
            self.finals_of(arm)
        except TrainingFailed as error:
            return str(error)
        return ""

    @property
    def judged(self) -> list[Arm]:
        """The arms that are compared, in their order."""
        return [arm for arm in self.described if not self.why_not(arm.name)]

    @property
    def missing(self) -> dict[str, str]:
        """Why others are not, by their titles."""
        return {arm.title: reason for arm in self.described if (reason := self.why_not(arm.name))}

    def refuse_final(self, trial: FrozenTrial) -> str:
        """Why a final training cannot begin: its arm has no configuration."""
        record = self.arms[str(trial.params[ARM])].record
        return "" if record.best() is not None else "no trial of this arm completed"

    def values_of(self, arm: str) -> dict[str, Value]:
        """The configuration keys of the trial that stands for an arm."""
        return {**self.chosen(arm).params, **self.off[arm]}

    def final_settings(self, trial: FrozenTrial) -> ExperimentSettings:
        """The settings of a final training."""
        return apply_values(self.settings, {**self.values_of(trial.params[ARM]), STUDENT_SEED: trial.params[SEED]})

    def finals_of(self, arm: str) -> list[FrozenTrial]:
        """An arm's final trainings, by seed; raises ``TrainingFailed`` when one of them failed."""
        trials = [trial for trial in self.finals.record.trials() if trial.params[ARM] == arm]
        failed = [trial for trial in trials if trial.values is None]
        if failed:
            reason = failed[0].user_attrs.get("failure", "unknown")
            raise TrainingFailed(f"final training of {arm} with seed {failed[0].params[SEED]}: {reason}")
        return sorted(trials, key=lambda trial: int(trial.params[SEED]))


def run_fair(
    settings: SearchSettings, stages: Stages, space: SearchSpace, outputs: OutputsByTeachers, folder: Path
) -> tuple[FairSearch, dict[str, list[Path]]]:
    """Search every arm, then train the finals.

    Args:
        settings: of the command.
        stages: the data, and what the trials read of earlier stages.
        space: everything that any arm searches.
        outputs: the teachers' labels, by teacher.
        folder: the result folder, with the journal.

    Returns:
        The searches, and each arm's final models by seed, in the result folder.

    Raises:
        TrainingFailed: the student alone, or everything else, could not be trained.
        Paused: the search was ended before its end.
    """
    content, storage = content_of(stages, outputs), open_journal(folder)
    fair = _open(settings, stages.settings, space, content, storage)
    probe = configured_trial(space, stages.settings)
    with open_session(settings, folder, stages, outputs, space, probe) as session:
        session.work_through(fair_phases(fair, settings.tuning, content, storage))
        return fair, {arm.name: _models(session, fair, arm, folder) for arm in fair.judged}


def fair_phases(
    fair: FairSearch, tuning: TuningSettings, content: Mapping[str, str], storage: BaseStorage
) -> Iterator[Sequence[Search]]:
    """What is worked through together: the arms' searches, then their finalists, then the final trainings.

    Each phase is drawn up when the one before has ended; what the journal holds is not done again.

    An arm that cannot be trained is told, and left out of the comparison.

    Args:
        fair: as it was opened; it gets the finalists.
        tuning: finalists and seeds.
        content: fingerprints of what the trials learn from.
        storage: the journal, which holds the finalists' trainings, too.

    Raises:
        TrainingFailed: the student alone, or everything else, could not be trained.
    """
    yield list(fair.arms.values())
    winner(fair.arms[STUDENT.name])
    if judged := _open_finalists(fair, tuning, content, storage):
        yield [retrained for _, retrained in judged.values()]
    for arm, (finalists, retrained) in judged.items():
        fair.finalists[arm] = rank_finalists(fair.arms[arm], retrained, finalists)
    yield [fair.finals]
    fair.finals_of(STUDENT.name)
    told = [f"{title} is left out of the comparison: {reason}" for title, reason in fair.missing.items()]
    if len(fair.judged) == 1:
        raise TrainingFailed("; ".join(told))
    for line in told:
        _log.warning("%s", line)


def _open_finalists(
    fair: FairSearch, tuning: TuningSettings, content: Mapping[str, str], storage: BaseStorage
) -> dict[str, tuple[list[FrozenTrial], Search]]:
    """Each arm's best trials and the search that trains them again; nothing where the first value decides.

    Their seeds are neither the one that the trials had nor one of the final trainings'.
    """
    found = {}
    for arm, search in fair.arms.items():
        last_used = fair.settings.seed + tuning.seeds
        opened = open_finalists(storage, fair.settings, tuning, content, search, last_used, arm)
        if opened is not None:
            found[arm] = opened
    return found


def _open(
    asked: SearchSettings,
    settings: ExperimentSettings,
    space: SearchSpace,
    content: Mapping[str, str],
    storage: BaseStorage,
) -> FairSearch:
    tuning = asked.tuning
    described = arms_of(space, settings)
    off = {arm.name: fixed_values(arm, settings) for arm in described}
    arms: dict[str, Search] = {}
    for arm in described:
        own = space_of(arm, space)
        first, values = [configured_trial(own, settings)], _values_with(off[arm.name])
        arms[arm.name] = open_search(
            storage, settings, tuning, content, arm.name, own, first, values, asked.trials, 1, f"{arm.name}/"
        )
    # never the seed that chose the configuration: its trial was the luckiest of many
    seeds = range(settings.seed + 1, settings.seed + 1 + tuning.seeds)
    final_space = SearchSpace(
        "distill",
        space.objectives,
        {
            ARM: CategoricalParameter(type="categorical", choices=[arm.name for arm in described]),
            SEED: IntParameter(type="int", low=seeds[0], high=seeds[-1]),
        },
    )
    grid = final_space.grid()
    _check_not_raised(arms, storage)
    found: dict[str, FairSearch] = {}

    def final_values(trial: FrozenTrial) -> dict[str, Value]:
        return {**found["fair"].values_of(str(trial.params[ARM])), STUDENT_SEED: trial.params[SEED]}

    finals = open_search(
        storage, settings, tuning, content, FINALS, final_space, grid, final_values, len(grid), len(grid), f"{FINALS}/"
    )
    finals.keep, finals.what, finals.unit, finals.needed = len(grid), "final trainings", "training", True
    fair = found["fair"] = FairSearch(arms, described, finals, off, settings, {})
    finals.refuse = fair.refuse_final
    return fair


def _check_not_raised(arms: Mapping[str, Search], storage: Any) -> None:
    """Raises ``ConfigError`` when trials are added to arms whose best configurations have been trained already."""
    if FINALS not in optuna.get_all_study_names(storage):
        return
    finals = optuna.load_study(study_name=FINALS, storage=storage).get_trials(deepcopy=False)
    if finals and any(search.record.ended() < search.trials for search in arms.values()):
        rule = "cannot be raised any more: the arms' best configurations are being trained on their seeds"
        raise ConfigError.one("trials", next(iter(arms.values())).trials, rule, "start a new search")


def _values_with(off: Mapping[str, Value]) -> Any:
    return lambda trial: {**trial.params, **off}


def _models(session: SearchSession, fair: FairSearch, arm: Arm, folder: Path) -> list[Path]:
    """The final models of an arm. They lie in the result folder; those of a bucket are copied there. One that is gone
    or damaged is trained again: every seed of every arm is needed."""
    models = []
    for trial in fair.finals_of(arm.name):
        source = session.fetch(fair.finals, trial.number)
        if source is None:
            train_again(fair.finals, trial.number, fair.settings, session.store)
            source = session.fetch(fair.finals, trial.number)
        assert source is not None  # it was written just now
        if session.store.local is None:
            target = folder / "finals" / f"{arm.name}_{trial.params[SEED]}"
            shutil.copytree(source, target, dirs_exist_ok=True)
            source = target
        models.append(source)
    return models


# ---------------------------------------------------------------------------------------------------- the answer


@dataclass(frozen=True, eq=False)
class ScoredModel:
    """A model of the answer: an arm, or one in closed form, which has no seeds.

    ``ranks`` ``[seeds, N]`` of the test targets; ``validation``: its mean there; ``trials``: configurations tried.
    """

    name: str
    title: str
    ranks: NDArray[np.int64]
    validation: float
    trials: int
    uses_llm: bool


def compare_arms(
    fair: FairSearch, models: Sequence[ScoredModel], user: NDArray[np.int64], resamples: int
) -> dict[str, Any]:
    """What came out on the test split, as `fair.json` holds it.

    Every arm is compared twice, paired by example and seed: with the student alone, and with the best model without a
    language model, which validation has chosen.

    Args:
        fair: the searches and final trainings.
        models: the arms in their order, and the models in closed form.
        user: each test example's owner, ``[N]``.
        resamples: of the bootstrap.
    """
    metric = fair.finals.record.space.metric
    k = int(metric.rsplit("_", 1)[-1])
    seeds = max(len(model.ranks) for model in models)
    # a model in closed form is the same for every seed
    scores = {model.name: np.broadcast_to(gain(model.ranks, k), (seeds, len(user))) for model in models}
    strongest = best_without_llm(models)
    families = {
        "student": compare_with(STUDENT.name, models, scores, user, resamples, fair.settings.seed, k),
        "best_without_llm": compare_with(strongest.name, models, scores, user, resamples, fair.settings.seed, k),
    }
    users = named_users(user)
    return {
        "metric": metric,
        "users": users,
        "examples": len(user),
        "arms": [_arm_line(fair, model, scores[model.name], user, resamples) for model in models],
        "best_without_llm": strongest.name,
        "comparisons": families["student"],
        "comparisons_with_best": families["best_without_llm"],
    }


def best_without_llm(models: Sequence[ScoredModel]) -> ScoredModel:
    """The model to beat: the best on validation of all in which no language model has a part."""
    return max((model for model in models if not model.uses_llm), key=lambda model: model.validation)


def compare_with(
    reference: str,
    models: Sequence[ScoredModel],
    scores: Mapping[str, NDArray[np.float64]],
    user: NDArray[np.int64],
    resamples: int,
    seed: int,
    k: int,
) -> list[dict[str, Any]]:
    """Every other model against one, as one family of comparisons: lines for `fair.json`, each with its sentence.

    Args:
        reference: the name of the one.
        models: all of them, with the titles that sentences use.
        scores: by model, each seed's metric of each example, ``[S, N]``.
        user: each example's owner, -1 where the source names none, ``[N]``.
        resamples: of the bootstrap.
        seed: decides the resamples.
        k: the cut-off K of the metric.
    """
    titles = {model.name: model.title for model in models}
    titled = {titles[name]: values for name, values in scores.items()}
    found = compare(titled, user, titles[reference], resamples, numpy_generator(seed, "bootstrap"), metric=f"NDCG@{k}")
    names = {title: name for name, title in titles.items()}
    return [
        {**asdict(one), "name": names[one.name], "against": names[one.against], "sentence": one.sentence()}
        for one in found
    ]


def _arm_line(
    fair: FairSearch, model: ScoredModel, scores: NDArray[np.float64], user: NDArray[np.int64], resamples: int
) -> dict[str, Any]:
    generator = numpy_generator(fair.settings.seed, "interval", model.name)
    mean, low, high = mean_interval(scores[: len(model.ranks)], user, resamples, generator)
    line: dict[str, Any] = {
        "arm": model.name,
        "title": model.title,
        "uses_llm": model.uses_llm,
        "trials": model.trials,
        "validation": model.validation,
        "test": mean,
        "low": low,
        "high": high,
        "values_per_seed": [float(value) for value in scores[: len(model.ranks)].mean(axis=1)],
    }
    if model.name not in fair.arms:
        return {**line, "seeds": [], "params": {}, "epochs": 0}
    search = fair.arms[model.name]
    return {
        **line,
        "seeds": [trial.params[SEED] for trial in fair.finals_of(model.name)],
        "params": fair.chosen(model.name).params,
        "finalists": finalist_lines(fair.finalists.get(model.name, [])),
        "epochs": sum(len(trial.intermediate_values) for trial in search.record.trials()),
    }


def best_final(fair: FairSearch) -> FrozenTrial:
    """The final training to publish: of the arm with the best mean on validation, the seed that is best there."""
    arm = max(fair.judged, key=lambda arm: mean_validation(fair, arm.name))
    return max(fair.finals_of(arm.name), key=lambda trial: trial.values[0])


def mean_validation(fair: FairSearch, arm: str) -> float:
    """An arm's mean over its final trainings."""
    return float(np.mean([trial.values[0] for trial in fair.finals_of(arm)]))
