"""Distil the teacher into one student with fixed weights; `params=FILE` replays a search's best_params.yaml."""

from __future__ import annotations

from src.exp.checks import check_experiment
from src.exp.entry import Entry
from src.pipeline.runs import run_distill
from src.pipeline.settings import ExperimentSettings

ENTRY: Entry[ExperimentSettings] = Entry(
    command="run_distill",
    config_name="config",
    description=__doc__,
    schema=ExperimentSettings,
    check=lambda settings: check_experiment(settings, teacher=True),
    run=lambda settings, stages, folder: run_distill(stages, folder),
)


def main() -> None:
    """Entry point."""
    ENTRY.main()


if __name__ == "__main__":
    main()
