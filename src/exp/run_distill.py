"""Distil the teacher into one student with fixed weights; `params=FILE` replays a search's best_params.yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from src.cli.entry import Entry, Work
from src.config.base_configs import SCHEMAS

if TYPE_CHECKING:
    from src.pipeline.settings import ExperimentSettings

EXAMPLES = (
    ("", "the small teacher distilled into the default student"),
    ("student=gru4rec distill.lam=0.8", "another student, more weight on the rankings"),
    ("distill=as_released", "the arithmetic of the published program"),
    ("active=kl_divergence active.kl_threshold=0.2", "only rows where teacher and student disagree"),
    ("params=result/result_A/best_params.yaml", "what a search found, once more"),
)


def work() -> Work[ExperimentSettings, Any]:
    """The work behind the command; what it needs is imported here, after the command line was judged."""
    from src.pipeline.preflight import check_experiment
    from src.pipeline.runs import run_distill

    return Work(
        check=lambda settings: check_experiment(settings, teacher=True, labels_suffice=True),
        run=lambda settings, stages, folder: run_distill(stages, folder),
    )


ENTRY: Entry[ExperimentSettings] = Entry("run_distill", "config", __doc__, SCHEMAS["config"], work, examples=EXAMPLES)


def main() -> None:
    """Entry point."""
    ENTRY.main()


if __name__ == "__main__":
    main()
