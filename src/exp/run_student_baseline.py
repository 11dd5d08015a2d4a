"""Train the student without a teacher: the baseline that distillation must beat."""

from __future__ import annotations

from src.exp.checks import check_experiment
from src.exp.entry import Entry
from src.pipeline.runs import run_student_baseline
from src.pipeline.settings import ExperimentSettings

ENTRY: Entry[ExperimentSettings] = Entry(
    command="run_student_baseline",
    config_name="config",
    description=__doc__,
    schema=ExperimentSettings,
    check=lambda settings: check_experiment(settings, teacher=False),
    run=lambda settings, stages, folder: run_student_baseline(stages, folder),
)


def main() -> None:
    """Entry point."""
    ENTRY.main()


if __name__ == "__main__":
    main()
