"""The main job: data, student baseline, teacher and its outputs (reused where they are in the cache), then a search
over the distillation with Optuna through Ray Tune. The result holds the best student beside the baseline.
"""

from __future__ import annotations

from typing import Any

from pydantic.dataclasses import dataclass

from src.core.settings import STRICT
from src.exp.checks import check_experiment
from src.exp.door import gather
from src.exp.entry import Entry
from src.exp.replay import REPLAY_HEADING, replay_keys
from src.pipeline.curves import write_curves
from src.pipeline.final import Comparison, Contestant, popularity, write_comparison
from src.pipeline.run_folder import RunFolder
from src.pipeline.runs import (
    BEST_STUDENT,
    CURVES,
    baseline_contestant,
    describe_data,
    finish,
    fit_summary,
    show_teacher,
    teacher_facts,
)
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages, fit_of
from src.student.artefact import load_student
from src.tuning.report import write_tensorboard, write_trials_table
from src.tuning.search import SearchOutcome, prepare_space, run_search
from src.tuning.search_space import SearchSpace
from src.tuning.settings import TuningSettings


@dataclass(frozen=True, config=STRICT)
class TuneSettings(ExperimentSettings):
    """An experiment and the search over it."""

    tuning: TuningSettings = TuningSettings()


@dataclass
class _Prepared:
    stages: Stages
    space: SearchSpace


def check(settings: TuneSettings) -> _Prepared:
    """Everything that can be known to be wrong before training."""
    found: dict[str, Any] = {}

    def space() -> None:
        found["space"] = prepare_space(experiment(settings), settings.tuning)

    def stages() -> None:
        found["stages"] = check_experiment(experiment(settings), teacher=True)

    gather(space, stages)
    return _Prepared(found["stages"], found["space"])


def experiment(settings: TuneSettings) -> ExperimentSettings:
    """The settings without the search."""
    names = ("dataset", "student", "teacher", "distill", "active", "evaluation", "runtime", "seed")
    return ExperimentSettings(**{name: getattr(settings, name) for name in names})


def run(settings: TuneSettings, prepared: _Prepared, folder: RunFolder) -> None:
    """Stages, search, the winner's artefacts, one look at the test split, the manifest."""
    stages = prepared.stages
    describe_data(stages)
    _ = stages.baseline
    outputs = stages.outputs
    facts = teacher_facts(stages)
    show_teacher(facts)
    stages.release_teacher()
    outcome = run_search(stages, outputs, prepared.space, settings.tuning, folder.path)
    folder.watch.add("distill_student_train_time", outcome.student_seconds)
    folder.watch.add("search_time", outcome.seconds)
    _publish(outcome, folder)
    write_curves(folder.path / CURVES / "student_baseline", fit_of(stages.baseline).history)
    _compare(stages, outcome, folder)
    finish(stages, folder, "tune_distill", {"search": _facts(stages, outcome), **facts})


def _publish(outcome: SearchOutcome, folder: RunFolder) -> None:
    folder.copy_folder(outcome.student_folder, BEST_STUDENT)
    folder.write_yaml("best_params.yaml", replay_keys(outcome.settings), REPLAY_HEADING.format(folder=folder.path))
    write_trials_table(folder.path, outcome.record)
    write_tensorboard(folder.path / CURVES, outcome.record)


def _compare(stages: Stages, outcome: SearchOutcome, folder: RunFolder) -> None:
    student = load_student(folder.path / BEST_STUDENT, stages.data)[0].to(stages.device)
    trials = len(outcome.record.trials())
    contestants = [popularity(stages), baseline_contestant(stages), Contestant("distilled", student, trials)]
    comparison = Comparison(stages, contestants, with_teacher=stages.uses_own_teacher)
    ranked = [
        *comparison.validation(),
        *comparison.test(folder, f"the winner (trial {outcome.best.number}) and the baselines"),
    ]
    ks = stages.settings.evaluation.ks
    write_comparison(folder, comparison.rows(ranked), ranked, ks, "best distilled student beside its baselines")


def _facts(stages: Stages, outcome: SearchOutcome) -> dict[str, Any]:
    states = [trial.state.name for trial in outcome.record.trials()]
    return {
        "trials": {name: states.count(name) for name in sorted(set(states))},
        "baseline_trials": 1,
        "best_trial": outcome.best.number,
        "best_value": outcome.best.value,
        "metric": outcome.record.space.metric,
        "best_params": outcome.best.params,
        "first_trial_reproduces_baseline": outcome.reproduces_baseline,
        "baseline": fit_summary(fit_of(stages.baseline)),
    }


ENTRY: Entry[TuneSettings] = Entry(
    command="tune_distill",
    config_name="tune",
    description=__doc__,
    schema=TuneSettings,
    check=check,
    run=run,
)


def main() -> None:
    """Entry point."""
    ENTRY.main()


if __name__ == "__main__":
    main()
