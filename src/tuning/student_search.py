"""The work of `tune_student`."""

from __future__ import annotations

from src.core.result_files import BEST_STUDENT
from src.pipeline.model_comparison import ModelComparison, closed_form_models
from src.pipeline.run_folder import RunFolder, previous_resumes
from src.pipeline.runs import baseline_model
from src.tuning.preflight import PreparedSearch, check_search
from src.tuning.publish import best_student, compare_winner, finish_search, search_facts
from src.tuning.search_settings import SearchSettings
from src.tuning.stage_search import alone_with_baseline, search_and_publish


def check(settings: SearchSettings) -> PreparedSearch:
    """Everything that can be known to be wrong before training."""
    return check_search(settings, "student", "student")


def run(settings: SearchSettings, prepared: PreparedSearch, folder: RunFolder) -> None:
    """Train the baseline, search, publish the winner, look at the test split once, write the manifest.

    Args:
        settings: of the command.
        prepared: the data and the search space, both checked.
        folder: the result folder.
    """
    stages = prepared.stages
    with alone_with_baseline(settings, stages, folder, "student"):
        outcome = search_and_publish(settings, prepared, folder, {}, BEST_STUDENT)
        tuned = best_student(outcome, stages, folder, "tuned")
        models = [*closed_form_models(stages), baseline_model(stages), tuned]
        compare_winner(
            ModelComparison(stages, models, with_teacher=False), outcome, folder, "best student", settings.reopen_test
        )
        finish_search(
            stages, folder, "tune_student", {"search": search_facts(outcome, stages, previous_resumes(folder.path))}
        )
