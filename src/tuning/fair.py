"""protocol=fair: did distillation help? Every arm gets the same trials, epochs and shared space, and several seeds.

Arms are searched on validation; each arm's best configuration is trained again on other seeds than the one it was
chosen with; the test split is opened once, for all of them together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import FrozenTrial
from rich.table import Table

from src.core.errors import ConfigError, TrainingFailed
from src.core.paths import write_json
from src.core.seed import numpy_generator
from src.data.teacher_outputs import TeacherOutputs
from src.evaluation.paired import compare, gain, mean_interval
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages
from src.tuning.applied import apply_values, configured_trial
from src.tuning.arms import ARMS, STUDENT, Arm, fixed_values, space_of
from src.tuning.dispatch import Search
from src.tuning.journal import open_journal
from src.tuning.search import SearchPlan, Workplace, Workshop, content_of, open_workshop, winner
from src.tuning.search_space import CategoricalParameter, IntParameter, SearchSpace, Value

FAIR = "fair.json"
FINALS, ARM, SEED = "finals", "arm", "seed"
POPULARITY = "popularity"


@dataclass(frozen=True, eq=False)
class FairSearch:
    """The arms' searches and the final trainings, over one journal."""

    arms: Mapping[str, Search]
    finals: Search
    off: Mapping[str, dict[str, Value]]
    settings: ExperimentSettings

    def values_of(self, arm: str) -> dict[str, Value]:
        """The configuration keys of an arm's best trial."""
        return {**winner(self.arms[arm]).params, **self.off[arm]}

    def final_settings(self, trial: FrozenTrial) -> ExperimentSettings:
        """The settings of a final training."""
        return apply_values(self.settings, {**self.values_of(trial.params[ARM]), SEED: trial.params[SEED]})

    def finals_of(self, arm: str) -> list[FrozenTrial]:
        """An arm's final trainings, by seed; raises ``TrainingFailed`` when one of them failed."""
        trials = [trial for trial in self.finals.record.trials() if trial.params[ARM] == arm]
        failed = [trial for trial in trials if trial.values is None]
        if failed:
            reason = failed[0].user_attrs.get("failure", "unknown")
            raise TrainingFailed(f"final training of {arm} with seed {failed[0].params[SEED]}: {reason}")
        return sorted(trials, key=lambda trial: int(trial.params[SEED]))


def run_fair(
    place: Workplace, settings: ExperimentSettings, space: SearchSpace, trials: int, stages: Stages,
    outputs: TeacherOutputs,
) -> tuple[FairSearch, dict[str, list[Path]]]:  # fmt: skip
    """Search every arm, train the finals; returns them and each arm's final models by seed, in the result folder.

    Raises ``TrainingFailed`` when an arm has no completed trial, ``Paused`` when it was ended before the end.
    """
    fair = _open(place, settings, space, trials, content_of(stages, outputs))
    probe = configured_trial(space, settings)
    with open_workshop(place, stages, outputs, space, probe) as shop:
        shop.work_through(list(fair.arms.values()))
        for search in fair.arms.values():
            winner(search)
        shop.work_through([fair.finals])
        return fair, {arm.name: _models(shop, fair, arm, place.folder) for arm in ARMS}


def _open(
    place: Workplace, settings: ExperimentSettings, space: SearchSpace, trials: int, content: Mapping[str, str]
) -> FairSearch:
    storage, tuning = open_journal(place.folder), place.tuning
    off = {arm.name: fixed_values(arm, space, settings) for arm in ARMS}
    arms: dict[str, Search] = {}
    for arm in ARMS:
        own = space_of(arm, space)
        plan = SearchPlan(
            arm.name, settings, own, trials, [configured_trial(own, settings)], 1, f"{arm.name}/", content
        )
        arms[arm.name] = plan.open(storage, tuning, _values_with(off[arm.name]))
    # never the seed that chose the configuration: its trial was the luckiest of many
    seeds = range(settings.seed + 1, settings.seed + 1 + tuning.seeds)
    final_space = SearchSpace(
        "distill",
        space.objectives,
        {
            ARM: CategoricalParameter(type="categorical", choices=[arm.name for arm in ARMS]),
            SEED: IntParameter(type="int", low=seeds[0], high=seeds[-1]),
        },
    )
    grid = final_space.grid()
    plan = SearchPlan(FINALS, settings, final_space, len(grid), grid, len(grid), f"{FINALS}/", content)
    _check_not_raised(arms, storage)
    found: dict[str, FairSearch] = {}

    def final_values(trial: FrozenTrial) -> dict[str, Value]:
        return {**found["fair"].values_of(str(trial.params[ARM])), SEED: trial.params[SEED]}

    finals = plan.open(storage, tuning, final_values)
    finals.keep = len(grid)
    found["fair"] = FairSearch(arms, finals, off, settings)
    return found["fair"]


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


def _models(shop: Workshop, fair: FairSearch, arm: Arm, folder: Path) -> list[Path]:
    """The final models of an arm. They lie in the result folder; those of a bucket are copied there."""
    models = []
    for trial in fair.finals_of(arm.name):
        source = shop.fetch(fair.finals, trial.number)
        if shop.store.local is None:
            target = folder / "finals" / f"{arm.name}_{trial.params[SEED]}"
            shop.store.download(f"{fair.finals.folder(trial.number)}/model", target)
            source = target
        models.append(source)
    return models


# ---------------------------------------------------------------------------------------------------- the answer


def judge(
    fair: FairSearch, ranks: Mapping[str, NDArray[np.int64]], user: NDArray[np.int64], resamples: int
) -> dict[str, Any]:
    """What came out on the test split, as `fair.json` holds it.

    ``ranks`` are the arms' ranks of the target, ``[seeds, N]``, popularity's ``[1, N]``; every arm is compared with the
    student alone, paired by example and seed.
    """
    k = int(fair.finals.record.space.metric.rsplit("_", 1)[-1])
    scores = {name: gain(values, k) for name, values in ranks.items()}
    trained = {arm.title: scores[arm.name] for arm in ARMS}
    generator = numpy_generator(fair.settings.seed, "bootstrap")
    comparisons = compare(trained, user, STUDENT.title, resamples, generator, metric=f"NDCG@{k}")
    names = {arm.title: arm.name for arm in ARMS}
    lines = [
        {**asdict(found), "name": names[found.name], "against": names[found.against], "sentence": found.sentence()}
        for found in comparisons
    ]
    return {
        "metric": f"ndcg_{k}",
        "users": len(np.unique(user)),
        "examples": len(user),
        "arms": [_arm_line(fair, name, values, user, resamples) for name, values in scores.items()],
        "comparisons": lines,
    }


def _arm_line(
    fair: FairSearch, name: str, scores: NDArray[np.float64], user: NDArray[np.int64], resamples: int
) -> dict[str, Any]:
    mean, low, high = mean_interval(scores, user, resamples, numpy_generator(fair.settings.seed, "interval", name))
    line: dict[str, Any] = {"arm": name, "test": mean, "low": low, "high": high}
    line["values_per_seed"] = [float(value) for value in scores.mean(axis=1)]
    if name == POPULARITY:
        return {**line, "title": name, "trials": 0, "seeds": [], "params": {}, "epochs": 0}
    finals, search = fair.finals_of(name), fair.arms[name]
    return {
        **line,
        "title": next(arm.title for arm in ARMS if arm.name == name),
        "trials": search.trials,
        "seeds": [trial.params[SEED] for trial in finals],
        "validation": float(np.mean([trial.values[0] for trial in finals])),
        "params": winner(search).params,
        "epochs": sum(len(trial.intermediate_values) for trial in search.record.trials()),
    }


def arms_table(answer: Mapping[str, Any]) -> Table:
    """The arms for the terminal: means over seeds, and the test value's 95 % interval."""
    table = Table(title=f"the arms on {answer['users']} test users", title_justify="left")
    for heading in ("arm", "trials", "seeds", "epochs", "validation", answer["metric"], "95 % interval"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for arm in answer["arms"]:
        validation = f"{arm['validation']:.4f}" if "validation" in arm else ""
        counts = (str(arm["trials"]), str(len(arm["seeds"])), str(arm["epochs"]))
        interval = f"{arm['low']:.4f} to {arm['high']:.4f}"
        table.add_row(arm["title"], *counts, validation, f"{arm['test']:.4f}", interval)
    return table


def save_answer(folder: Path, answer: Mapping[str, Any]) -> None:
    """`fair.json`."""
    write_json(folder / FAIR, answer)


def best_final(fair: FairSearch) -> FrozenTrial:
    """The final training to publish: of the arm with the best mean on validation, the seed that is best there."""
    sign = fair.finals.record.space.objectives[fair.finals.record.space.metric] == "maximize"

    def mean(arm: Arm) -> float:
        value = float(np.mean([trial.values[0] for trial in fair.finals_of(arm.name)]))
        return value if sign else -value

    arm = max(ARMS, key=mean)
    return max(fair.finals_of(arm.name), key=lambda trial: trial.values[0] if sign else -trial.values[0])
