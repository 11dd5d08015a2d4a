"""The work of `tune_distill`: one search, or the fair protocol (arms with equal budgets, several seeds)."""

from __future__ import annotations

from src.core.result_files import BEST_STUDENT
from src.data.teacher_outputs import OutputsByTeachers, TeacherOutputs
from src.pipeline.model_comparison import ModelComparison, closed_form_models
from src.pipeline.run_folder import RunFolder, previous_resumes
from src.pipeline.runs import baseline_model, run_teacher_check, show_teacher, teacher_facts, tracker_of
from src.pipeline.stages import Stages
from src.pipeline.student_stages import fit_of
from src.pipeline.tracking import write_curves
from src.tuning.arms import arms_of, check_arms, teachers_of
from src.tuning.fair import (
    ARM,
    SEED,
    best_final,
    run_fair,
)
from src.tuning.fair_answer import fair_facts, publish_answer
from src.tuning.preflight import PreparedSearch, check_protocol, check_search
from src.tuning.publish import best_student, compare_winner, finish_search, reproduces_baseline, search_facts
from src.tuning.report import write_outcomes, write_trials_table
from src.tuning.search_settings import TuneSettings
from src.tuning.shared_data import teaching_key
from src.tuning.stage_search import alone_with_baseline, search_and_publish


def _document(settings: TuneSettings) -> str:
    return "fair" if settings.protocol == "fair" else "distill"


def check(settings: TuneSettings) -> PreparedSearch:
    """Everything that can be known to be wrong before training."""
    check_protocol(settings)
    if settings.protocol == "fair":
        return check_search(settings, "distill", "fair", check_arms)
    return check_search(settings, "distill", "distill")


def run(settings: TuneSettings, prepared: PreparedSearch, folder: RunFolder) -> None:
    """Build the stages, search, publish the winner, look at the test split once, write the manifest.

    Args:
        settings: of the command.
        prepared: the data and the search space, both checked.
        folder: the result folder.
    """
    stages = prepared.stages
    with alone_with_baseline(settings, stages, folder, _document(settings)):
        run_teacher_check(stages, folder)
        outputs = _outputs_by_teachers(settings, prepared, stages)
        show_teacher(teacher_facts(stages))
        stages.release_teacher()
        write_curves(tracker_of(stages, folder), "student_baseline", fit_of(stages.baseline).history)
        work = _run_fair if settings.protocol == "fair" else _run_single
        work(settings, prepared, folder, outputs)


def _outputs_by_teachers(settings: TuneSettings, prepared: PreparedSearch, stages: Stages) -> dict[str, TeacherOutputs]:
    """What every set of teachers says that some trial reads."""
    wanted = [settings.distill.teachers]
    if settings.protocol == "fair":
        wanted = teachers_of(arms_of(prepared.space, stages.settings))
    return {teaching_key(teachers): stages.outputs_of(teachers) for teachers in wanted}


# ------------------------------------------------------------------------------------------------------- one search


def _run_single(
    settings: TuneSettings, prepared: PreparedSearch, folder: RunFolder, outputs: OutputsByTeachers
) -> None:
    stages = prepared.stages
    outcome = search_and_publish(settings, prepared, folder, outputs, BEST_STUDENT)
    folder.stopwatch.add("distill_student_train_time", float(outcome.best.user_attrs["seconds"]))
    distilled = best_student(outcome, stages, folder, "distilled")
    models = [*closed_form_models(stages), baseline_model(stages), distilled]
    comparison = ModelComparison(stages, models, with_teacher=stages.uses_own_teacher)
    compare_winner(comparison, outcome, folder, "best distilled student", settings.reopen_test)
    same = {"first_trial_reproduces_baseline": reproduces_baseline(stages, outcome.search.record)}
    found = {
        "search": {**search_facts(outcome, stages, previous_resumes(folder.path)), **same},
        **teacher_facts(stages),
    }
    finish_search(stages, folder, "tune_distill", found)


# --------------------------------------------------------------------------------------------------- the fair protocol


def _run_fair(settings: TuneSettings, prepared: PreparedSearch, folder: RunFolder, outputs: OutputsByTeachers) -> None:
    stages = prepared.stages
    with folder.stopwatch.measure("search_time"):
        fair, models = run_fair(settings, stages, prepared.space, outputs, folder.path)
    best = best_final(fair)
    arm, seed = str(best.params[ARM]), best.params[SEED]
    seeds = [trial.params[SEED] for trial in fair.finals_of(arm)]
    folder.copy_folder(models[arm][seeds.index(seed)], BEST_STUDENT)
    folder.write_best_params(fair.final_settings(best), "run_distill")
    folder.stopwatch.add("distill_student_train_time", float(best.user_attrs["seconds"]))
    searches = [*fair.arms.values(), fair.finals]
    write_trials_table(folder.path, searches)
    for search in searches:
        write_outcomes(tracker_of(stages, folder), search.record)
    publish_answer(stages, fair, models, folder, settings.tuning.resamples, settings.reopen_test)
    finish_search(stages, folder, "tune_distill", {"search": fair_facts(fair, arm, seed), **teacher_facts(stages)})
