"""The work of `tune_student`."""

from __future__ import annotations

from src.exp.search_settings import SearchSettings
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
from src.pipeline.final import Comparison, closed_form_contestants
from src.pipeline.run_folder import RunFolder
from src.pipeline.runs import BEST_STUDENT, baseline_contestant


def check(settings: SearchSettings) -> Prepared:
    """Everything that can be known to be wrong before training."""
    return check_search(settings, "student", "student")


def run(settings: SearchSettings, prepared: Prepared, folder: RunFolder) -> None:
    """Baseline, search, the winner's artefacts, one look at the test split, the manifest."""
    stages = prepared.stages
    with driving(settings, stages, folder, "student") as place:
        outcome = search_and_publish(settings, prepared, folder, place, {}, BEST_STUDENT)
        tuned = best_student(outcome, stages, folder, "tuned")
        contestants = [*closed_form_contestants(stages), baseline_contestant(stages), tuned]
        compare(Comparison(stages, contestants, with_teacher=False), outcome, folder, settings, "best student")
        conclude(stages, folder, "tune_student", {"search": facts(outcome, stages, folder)})
