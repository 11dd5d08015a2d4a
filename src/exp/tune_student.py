"""Search the student alone, without a teacher: what a fair comparison with a distilled student starts from."""

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
from src.pipeline.final import Comparison, Contestant, popularity, write_comparison
from src.pipeline.run_folder import RunFolder
from src.pipeline.runs import BEST_STUDENT, baseline_contestant, describe_data
from src.student.artefact import load_student
from src.tuning.journal import single_driver
from src.tuning.search import run_search


def run(settings: SearchSettings, prepared: Prepared, folder: RunFolder) -> None:
    """Baseline, search, the winner's artefacts, one look at the test split, the manifest."""
    with single_driver(folder.path):
        check_test_split(settings, folder)
        place = begin(settings, folder, "student")
        stages = prepared.stages
        describe_data(stages)
        _ = stages.baseline
        with run_search(place, plan(settings, prepared), stages, None) as outcome:
            publish(outcome, folder, BEST_STUDENT)
        folder.watch.add("search_time", outcome.seconds)
        student = load_student(folder.path / BEST_STUDENT, stages.data)[0].to(stages.device)
        trials = len(outcome.search.record.trials())
        contestants = [popularity(stages), baseline_contestant(stages), Contestant("tuned", student, trials)]
        comparison = Comparison(stages, contestants, with_teacher=False)
        judged = fingerprint(outcome.best.user_attrs["weights"], stages.baseline.key)
        reason = f"the winner (trial {outcome.best.number}) and the baselines"
        ranked = [*comparison.validation(), *comparison.test(folder, reason, judged, settings.reopen_test)]
        ks = stages.settings.evaluation.ks
        write_comparison(folder, comparison.rows(ranked), ranked, ks, "best student beside its baselines")
        conclude(stages, folder, "tune_student", {"search": facts(outcome, stages, folder)})


ENTRY: Entry[SearchSettings] = Entry(
    command="tune_student",
    config_name="tune_student",
    description=__doc__,
    schema=SearchSettings,
    check=lambda settings: check_search(settings, "student", "student"),
    run=run,
    resumable=RESUMABLE,
)


def main() -> None:
    """Entry point."""
    ENTRY.main()


if __name__ == "__main__":
    main()
