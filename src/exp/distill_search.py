"""The work of `tune_distill`: one search, or the fair protocol (arms with equal budgets, several seeds)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.core.data_utils import fingerprint
from src.core.errors import ConfigError, Problem, gather
from src.core.logging import console
from src.core.metrics import summarise
from src.data.teacher_outputs import TeacherOutputs, Teachings
from src.exp.replay import REPLAY_HEADING, replay_keys
from src.exp.search_settings import TuneSettings
from src.exp.searching import (
    Prepared,
    best_student,
    check_search,
    compare,
    conclude,
    driving,
    facts,
    search_and_publish,
)
from src.pipeline.curves import write_curves
from src.pipeline.final import Comparison, Contestant, closed_form_contestants, write_tables
from src.pipeline.run_folder import RunFolder
from src.pipeline.runs import (
    BEST_STUDENT,
    CURVES,
    baseline_contestant,
    check_teacher,
    show_teacher,
    teacher_facts,
)
from src.pipeline.stages import Stages, fit_of
from src.student.artefact import load_student
from src.tuning.arms import arms_of, check_arms, teachers_of
from src.tuning.fair import (
    FairSearch,
    Scored,
    arms_table,
    best_final,
    judge,
    mean_validation,
    run_fair,
    save_answer,
)
from src.tuning.report import write_tensorboard, write_trials_table
from src.tuning.search import Workplace, reproduces_baseline
from src.tuning.shared_data import teaching_key


def _document(settings: TuneSettings) -> str:
    return "fair" if settings.protocol == "fair" else "distill"


def check(settings: TuneSettings) -> Prepared:
    """Everything that can be known to be wrong before training."""
    if settings.protocol == "fair":
        gather(lambda: _check_fair(settings))
        return check_search(settings, "distill", "fair", check_arms)
    return check_search(settings, "distill", "distill")


def _check_fair(settings: TuneSettings) -> None:
    problems = []
    if settings.tuning.sampler == "grid":
        rule = "protocol=fair gives every arm the same number of trials, which their grids do not have"
        problems.append(Problem("tuning.sampler", "grid", rule, "tpe, random or cmaes"))
    if settings.warm_start is not None:
        rule = "protocol=fair starts every arm alike"
        problems.append(Problem("warm_start", str(settings.warm_start), rule, "leave it out"))
    if problems:
        raise ConfigError(problems)


def run(settings: TuneSettings, prepared: Prepared, folder: RunFolder) -> None:
    """Stages, search, the winner's artefacts, one look at the test split, the manifest."""
    stages = prepared.stages
    with driving(settings, stages, folder, _document(settings)) as place:
        check_teacher(stages, folder)
        outputs = _teaching(settings, prepared, stages)
        show_teacher(teacher_facts(stages))
        stages.release_teacher()
        write_curves(folder.path / CURVES / "student_baseline", fit_of(stages.baseline).history)
        work = _run_fair if settings.protocol == "fair" else _run_single
        work(settings, prepared, folder, place, outputs)


def _teaching(settings: TuneSettings, prepared: Prepared, stages: Stages) -> dict[str, TeacherOutputs]:
    """What every set of teachers says that some trial reads."""
    wanted = [settings.distill.teachers]
    if settings.protocol == "fair":
        wanted = teachers_of(arms_of(prepared.space, stages.settings))
    return {teaching_key(teachers): stages.outputs_of(teachers) for teachers in wanted}


# ------------------------------------------------------------------------------------------------------- one search


def _run_single(
    settings: TuneSettings,
    prepared: Prepared,
    folder: RunFolder,
    place: Workplace,
    outputs: Teachings,
) -> None:
    stages = prepared.stages
    outcome = search_and_publish(settings, prepared, folder, place, outputs, BEST_STUDENT)
    folder.watch.add("distill_student_train_time", float(outcome.best.user_attrs["seconds"]))
    distilled = best_student(outcome, stages, folder, "distilled")
    contestants = [*closed_form_contestants(stages), baseline_contestant(stages), distilled]
    comparison = Comparison(stages, contestants, with_teacher=stages.uses_own_teacher)
    compare(comparison, outcome, folder, settings, "best distilled student")
    same = {"first_trial_reproduces_baseline": reproduces_baseline(stages, outcome.search.record)}
    found = {"search": {**facts(outcome, stages, folder), **same}, **teacher_facts(stages)}
    conclude(stages, folder, "tune_distill", found)


# --------------------------------------------------------------------------------------------------- the fair protocol


def _run_fair(
    settings: TuneSettings,
    prepared: Prepared,
    folder: RunFolder,
    place: Workplace,
    outputs: Teachings,
) -> None:
    stages = prepared.stages
    with folder.watch.measure("search_time"):
        fair, models = run_fair(place, stages.settings, prepared.space, settings.trials, stages, outputs)
    best = best_final(fair)
    arm, seed = str(best.params["arm"]), best.params["seed"]
    seeds = [trial.params["seed"] for trial in fair.finals_of(arm)]
    folder.copy_folder(models[arm][seeds.index(seed)], BEST_STUDENT)
    heading = REPLAY_HEADING.format(command="run_distill", folder=folder.path)
    folder.write_yaml("best_params.yaml", replay_keys(fair.final_settings(best)), heading)
    folder.watch.add("distill_student_train_time", float(best.user_attrs["seconds"]))
    searches = [*fair.arms.values(), fair.finals]
    write_trials_table(folder.path, searches)
    for search in searches:
        write_tensorboard(folder.path / CURVES / search.name, search.record)
    _answer(settings, stages, fair, models, folder)
    conclude(stages, folder, "tune_distill", {"search": _fair_facts(fair, arm, seed), **teacher_facts(stages)})


def _answer(
    settings: TuneSettings,
    stages: Stages,
    fair: FairSearch,
    models: Mapping[str, Sequence[Path]],
    folder: RunFolder,
) -> None:
    """Every final model on validation and on the test split, opened once; the verdicts in plain sentences."""
    contestants = closed_form_contestants(stages)
    closed_forms = {contestant.name: contestant for contestant in contestants}
    owners = list(closed_forms)
    for arm in fair.described:
        for trial, model in zip(fair.finals_of(arm.name), models[arm.name], strict=True):
            student = load_student(model, stages.data)[0].to(stages.device)
            name = f"{arm.name} (seed {trial.params['seed']})"
            contestants.append(Contestant(name, student, fair.arms[arm.name].trials))
            owners.append(arm.name)
    comparison = Comparison(stages, contestants, with_teacher=False)
    judged = fingerprint(*(trial.user_attrs["weights"] for trial in fair.finals.record.trials()))
    reason = f"the arms' {len(contestants) - 1} final models and popularity"
    test = stages.data.test.open(reason, folder.test_record, judged, settings.reopen_test)
    on_test = comparison.rank("test", test, 0)
    ranks = {
        owner: np.stack([ranked.ranks.numpy() for ranked, own in zip(on_test, owners, strict=True) if own == owner])
        for owner in dict.fromkeys(owners)
    }
    on_validation = comparison.validation()
    metric = fair.finals.record.space.metric
    judged_models = [
        Scored(
            arm.name,
            arm.title,
            ranks[arm.name],
            mean_validation(fair, arm.name),
            fair.arms[arm.name].trials,
            arm.uses_llm,
        )
        for arm in fair.described
    ]
    for shown in on_validation:
        if (closed := closed_forms.get(shown.model)) is not None:
            value = summarise(shown.ranks, stages.settings.evaluation.ks)[metric]
            own = Scored(closed.name, closed.name, ranks[closed.name], value, closed.trials, uses_llm=False)
            judged_models.append(own)
    answer = judge(fair, judged_models, test.user, settings.tuning.resamples)
    save_answer(folder.path, answer)
    everything = [*on_validation, *on_test]
    write_tables(folder, comparison.rows(everything), everything)
    console.print(arms_table(answer))
    for family in ("comparisons", "comparisons_with_best"):
        for line in answer[family]:
            console.print(line["sentence"], markup=False)


def _fair_facts(fair: FairSearch, arm: str, seed: object) -> dict[str, Any]:
    return {
        "protocol": "fair",
        "metric": fair.finals.record.space.metric,
        "trials": {name: len(search.record.trials()) for name, search in fair.arms.items()},
        "published": {"arm": arm, "seed": seed},
    }
