"""Search the teacher's training (iLoRA): every trial trains one on the same rows and is judged on the same sample.

The best teacher lies in the result; run_teacher params=…/best_params.yaml trains it again and labels with it.
"""

from __future__ import annotations

from src.core.data_utils import fingerprint
from src.exp.entry import Entry
from src.exp.searching import (
    RESUMABLE,
    Prepared,
    SearchSettings,
    begin,
    check_search,
    check_test_split,
    conclude,
    facts,
    plan,
    publish,
)
from src.pipeline.final import Comparison, popularity, write_comparison
from src.pipeline.run_folder import RunFolder
from src.pipeline.runs import baseline_contestant, describe_data
from src.teacher.trained import load_trained
from src.tuning.journal import single_driver
from src.tuning.search import run_search

BEST_TEACHER = "teacher"


def document(settings: SearchSettings) -> str:
    """The search space of this teacher where none is named: one that writes titles has no head to train."""
    return "teacher_title" if settings.teacher.objective == "title_lm" else "teacher"


def run(settings: SearchSettings, prepared: Prepared, folder: RunFolder) -> None:
    """Encoder and language model, search, the winner, one look at the test split (the teacher: a sample), manifest."""
    with single_driver(folder.path):
        check_test_split(settings, folder)
        place = begin(settings, folder, document(settings))
        stages = prepared.stages
        describe_data(stages)
        # what the trials take from the cache is built here, once
        _, _, _ = stages.baseline, stages.encoder, stages.llm_folder
        with run_search(place, plan(settings, prepared), stages, None) as outcome:
            publish(outcome, folder, BEST_TEACHER)
        folder.watch.add("search_time", outcome.seconds)
        best, seed = outcome.settings.teacher, stages.settings.seed
        teacher = load_trained(folder.path / BEST_TEACHER, best, stages.data, stages.device, seed)
        contestants = [popularity(stages), baseline_contestant(stages)]
        comparison = Comparison(stages, contestants, with_teacher=True, teacher=teacher)
        judged = fingerprint(outcome.best.user_attrs["weights"], stages.baseline.key)
        reason = f"the best teacher (trial {outcome.best.number}) and the student"
        ranked = [*comparison.validation(), *comparison.test(folder, reason, judged, settings.reopen_test)]
        ks = stages.settings.evaluation.ks
        write_comparison(folder, comparison.rows(ranked), ranked, ks, "best teacher beside the student")
        conclude(stages, folder, "tune_teacher", {"search": facts(outcome, stages, folder)})


ENTRY: Entry[SearchSettings] = Entry(
    command="tune_teacher",
    config_name="tune_teacher",
    description=__doc__,
    schema=SearchSettings,
    check=lambda settings: check_search(settings, "teacher", document(settings)),
    run=run,
    resumable=RESUMABLE,
)


def main() -> None:
    """Entry point."""
    ENTRY.main()


if __name__ == "__main__":
    main()
