"""The work of `tune_teacher`."""

from __future__ import annotations

from src.exp.resume import previous_resumes
from src.exp.search_settings import SearchSettings
from src.exp.searching import Prepared, check_search, driving, search_and_publish
from src.pipeline.final import Comparison, closed_form_contestants
from src.pipeline.run_folder import RunFolder
from src.pipeline.runs import baseline_contestant
from src.teacher.objective import objective_of
from src.teacher.operations.inference import load_trained
from src.tuning.publish import compare_winner, conclude, facts

BEST_TEACHER = "teacher"


def document(settings: SearchSettings) -> str:
    """The search space of this teacher where none is named: one that writes titles has no head to train."""
    return objective_of(settings.teacher.objective).search_space


def check(settings: SearchSettings) -> Prepared:
    """Everything that can be known to be wrong before training."""
    return check_search(settings, "teacher", document(settings))


def run(settings: SearchSettings, prepared: Prepared, folder: RunFolder) -> None:
    """Encoder and language model, search, the winner, one look at the test split (the teacher: a sample), manifest."""
    stages = prepared.stages
    with driving(settings, stages, folder, document(settings)) as place:
        # what the trials take from the cache is built here, once
        _, _ = stages.encoder, stages.llm_folder
        outcome = search_and_publish(settings, prepared, folder, place, {}, BEST_TEACHER)
        best, seed = outcome.settings.teacher, stages.settings.seed
        teacher = load_trained(folder.path / BEST_TEACHER, best, stages.data, stages.device, seed)
        contestants = [*closed_form_contestants(stages), baseline_contestant(stages)]
        comparison = Comparison(stages, contestants, with_teacher=True, teacher=teacher)
        compare_winner(comparison, outcome, folder, "best teacher", settings.reopen_test)
        conclude(stages, folder, "tune_teacher", {"search": facts(outcome, stages, previous_resumes(folder.path))})
