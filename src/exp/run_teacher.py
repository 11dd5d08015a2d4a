"""Train the teacher (iLoRA) and label training examples with it.

The result holds the teacher, its outputs, and with export_dllm2rec=true the three files that DLLM2Rec reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from src.cli.entry import Entry, Work
from src.config.base_configs import SCHEMAS

if TYPE_CHECKING:
    from src.pipeline.run_folder import RunFolder
    from src.pipeline.settings import TeachSettings
    from src.pipeline.stages import Stages

EXAMPLES = (
    ("", "the small teacher that is built from the sample data"),
    ("teacher=title", "one that writes titles, as published"),
    ("teacher.llm=org/model dataset=movielens", "a model of the Hugging Face hub, or a local folder"),
    ("teacher=llama2_7b_4bit", "Llama-2-7B on a GPU of 12 GB (see conf/teacher)"),
    ("teacher.export.budget=1.0 export_dllm2rec=true", "also the three files that DLLM2Rec reads"),
)


def work() -> Work[TeachSettings, Any]:
    """The work behind the command; what it needs is imported here, after the command line was judged."""
    from src.pipeline.preflight import check_experiment
    from src.pipeline.runs import run_teacher

    def check(settings: TeachSettings) -> Stages:
        return check_experiment(settings, teacher=True)

    def run(settings: TeachSettings, stages: Stages, folder: RunFolder) -> None:
        run_teacher(stages, folder, settings.export_dllm2rec)

    return Work(check, run)


ENTRY: Entry[TeachSettings] = Entry("run_teacher", "teach", __doc__, SCHEMAS["teach"], work, examples=EXAMPLES)


def main() -> None:
    """Entry point."""
    ENTRY.main()


if __name__ == "__main__":
    main()
