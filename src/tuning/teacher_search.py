"""The work of `tune_teacher`."""

from __future__ import annotations

from src.core.result_files import TEACHER
from src.pipeline.model_comparison import ModelComparison, closed_form_models
from src.pipeline.run_folder import RunFolder, previous_resumes
from src.pipeline.runs import baseline_model
from src.teacher.objective import objective_of
from src.teacher.operations.inference import load_trained
from src.tuning.preflight import PreparedSearch, check_search
from src.tuning.publish import compare_winner, finish_search, search_facts
from src.tuning.search_settings import SearchSettings
from src.tuning.stage_search import alone_with_baseline, search_and_publish


def document(settings: SearchSettings) -> str:
    """The search space of this teacher where none is named: one that writes titles has no head to train."""
    return objective_of(settings.teacher.objective).search_space


def check(settings: SearchSettings) -> PreparedSearch:
    """Everything that can be known to be wrong before training."""
    return check_search(settings, "teacher", document(settings))


def run(settings: SearchSettings, prepared: PreparedSearch, folder: RunFolder) -> None:
    """Build encoder and language model, search, publish the winner, look at the test split once, write the manifest.

    The teacher is compared on a sample of the test split.

    Args:
        settings: of the command.
        prepared: the data and the search space, both checked.
        folder: the result folder.
    """
    stages = prepared.stages
    with alone_with_baseline(settings, stages, folder, document(settings)):
        # what the trials take from the cache is built here, once
        _, _ = stages.encoder, stages.llm_folder
        outcome = search_and_publish(settings, prepared, folder, {}, TEACHER)
        best, seed = outcome.settings.teacher, stages.settings.seed
        teacher = load_trained(folder.path / TEACHER, best, stages.data, stages.device, seed)
        models = [*closed_form_models(stages), baseline_model(stages)]
        comparison = ModelComparison(stages, models, with_teacher=True, teacher=teacher)
        compare_winner(comparison, outcome, folder, "best teacher", settings.reopen_test)
        finish_search(
            stages, folder, "tune_teacher", {"search": search_facts(outcome, stages, previous_resumes(folder.path))}
        )
