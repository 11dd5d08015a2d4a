"""Train the student without a teacher: the baseline that distillation must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from src.cli.entry import Entry, Work
from src.config.base_configs import SCHEMAS

if TYPE_CHECKING:
    from src.pipeline.settings import ExperimentSettings

EXAMPLES = (
    ("", "the default student on the sample data"),
    ("student=gru4rec seed=7", "another architecture, another seed"),
    ("dataset=movielens dataset.name=ml-1m", "MovieLens, fetched when it is missing"),
    ("student.loop.epochs=50 student.learning_rate=0.0005", "longer, in smaller steps"),
    ("hydra.run.dir=result/mine", "a result folder of your choice"),
)


def work() -> Work[ExperimentSettings, Any]:
    """The work behind the command; what it needs is imported here, after the command line was judged."""
    from src.pipeline.preflight import check_experiment
    from src.pipeline.runs import run_student_baseline

    return Work(
        check=lambda settings: check_experiment(settings, teacher=False),
        run=lambda settings, stages, folder: run_student_baseline(stages, folder),
    )


ENTRY: Entry[ExperimentSettings] = Entry(
    "run_student_baseline", "config", __doc__, SCHEMAS["config"], work, examples=EXAMPLES
)


def main() -> None:
    """Entry point."""
    ENTRY.main()


if __name__ == "__main__":
    main()
