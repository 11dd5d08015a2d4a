"""What run_teacher adds to an experiment."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from src.core.settings import STRICT
from src.pipeline.settings import ExperimentSettings


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
