"""Train the teacher (iLoRA) and label training examples with it.

The result holds the teacher, its outputs, and with export_dllm2rec=true the three files that DLLM2Rec reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from src.core.settings import STRICT
from src.exp.base_configs import register_command
from src.exp.entry import Entry, Work
from src.pipeline.run_folder import RunFolder
from src.pipeline.settings import ExperimentSettings

if TYPE_CHECKING:
    from src.pipeline.stages import Stages


@dataclass(frozen=True, config=STRICT)
class TeachSettings(ExperimentSettings):
    """An experiment, and what is exported besides."""

    export_dllm2rec: Annotated[
        bool, Field(description="also write DLLM2Rec's three files; needs every training row labelled")
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.export_dllm2rec and self.teacher.export.budget != 1.0:
            raise ValueError("export_dllm2rec = true needs every training row labelled: set teacher.export.budget=1.0")
        if self.distill.outputs_from is not None:
            raise ValueError("distill.outputs_from names outputs that exist; run_teacher makes new ones: leave it null")


register_command("teach", TeachSettings)

EXAMPLES = (
    ("", "the small teacher that is built from the sample data"),
    ("teacher=title", "one that writes titles, as published"),
    ("teacher.llm=org/model dataset=movielens", "a model of the Hugging Face hub, or a local folder"),
    ("teacher=llama2_7b_4bit", "Llama-2-7B on a GPU of 12 GB (see conf/teacher)"),
    ("teacher.export.budget=1.0 export_dllm2rec=true", "also the three files that DLLM2Rec reads"),
)


def work() -> Work[TeachSettings, Any]:
    """The work behind the command; what it needs is imported here, after the command line was judged."""
    from src.exp.checks import check_experiment
    from src.pipeline.runs import run_teacher

    def check(settings: TeachSettings) -> Stages:
        return check_experiment(settings, teacher=True)

    def run(settings: TeachSettings, stages: Stages, folder: RunFolder) -> None:
        run_teacher(stages, folder, settings.export_dllm2rec)

    return Work(check, run)


ENTRY = Entry("run_teacher", "teach", __doc__, TeachSettings, work, examples=EXAMPLES)


def main() -> None:
    """Entry point."""
    ENTRY.main()


if __name__ == "__main__":
    main()
