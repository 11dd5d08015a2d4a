"""Everything that determines an experiment, room by room."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from src.core.metrics import metric_names
from src.core.settings import STRICT, nested_plain, set_dotted
from src.data.settings import DatasetSettings
from src.distill.settings import ActiveSettings, DistillSettings, active_terms
from src.pipeline.tracking import Tracking
from src.student.baselines import BaselineSettings
from src.student.settings import AnyStudentSettings, EvaluationSettings, NetworkSettings
from src.teacher.settings import TeacherSettings


@dataclass(frozen=True, config=STRICT)
class RuntimeSettings:
    """Where a run computes and what it reuses."""

    device: Annotated[str, Field(min_length=1, description="auto (first GPU, else CPU), cpu, cuda, cuda:N")] = "auto"
    cache: Annotated[Path, Field(description="folder of finished stages, shared by all runs")] = Path("data/cache")
    reuse: Annotated[bool, Field(description="take finished stages from the cache; false: build them again")] = True
    tracking: Annotated[
        Tracking,
        Field(
            description="who draws curves while models train: tensorboard (in the result's tb), mlflow (in the "
            "result, or where MLFLOW_TRACKING_URI says), wandb (offline, in the result), none"
        ),
    ] = "tensorboard"


@dataclass(frozen=True, config=STRICT)
class ExperimentSettings:
    """An experiment from interactions to a distilled student."""

    dataset: DatasetSettings
    student: AnyStudentSettings
    teacher: TeacherSettings
    distill: DistillSettings
    active: ActiveSettings
    evaluation: EvaluationSettings
    baselines: BaselineSettings
    runtime: RuntimeSettings
    seed: Annotated[int, Field(ge=0, description="decides every random draw of a run")] = 42
    student_seed: Annotated[
        int | None,
        Field(
            ge=0,
            description="decides the draws of the student's own training (weights, dropout, order, negatives), while "
            "all that it is made from stays that of seed; null: seed",
        ),
    ] = None

    def __post_init__(self) -> None:
        names = metric_names(self.evaluation.ks)
        loops = {"student": (self.student.loop, names)} if isinstance(self.student, NetworkSettings) else {}
        loops["teacher.encoder"] = (self.teacher.encoder.loop, names)
        loops["teacher.train"] = (self.teacher.train.loop, self.teacher.epoch_metrics(self.evaluation.ks))
        for where, (loop, known) in loops.items():
            if loop.monitor not in known:
                raise ValueError(f"{where}.loop.monitor = {loop.monitor!r} must be one of {', '.join(known)}")
        if (
            any(term.reads_labels for term in active_terms(self.distill))
            and self.distill.candidate_topk > self.teacher.export.top_n
        ):
            raise ValueError(
                f"distill.candidate_topk = {self.distill.candidate_topk} must not exceed "
                f"teacher.export.top_n = {self.teacher.export.top_n}"
            )


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


@dataclass(frozen=True, config=STRICT)
class EvaluateSettings:
    """Which results, and how they are judged."""

    evaluation: EvaluationSettings
    runtime: RuntimeSettings
    results: Annotated[
        tuple[Path, ...],
        Field(min_length=1, description="finished result folders: results=[result/result_A,result/result_B]"),
    ]


#: keys that say where something lies or computes: what lies there is known by its own fingerprint
_PATHS = ("runtime", "dataset.root", "teacher.llm", "distill.outputs_from")


def without_paths(settings: ExperimentSettings) -> dict[str, Any]:
    """Settings as nested plain data, with null for the keys of `_PATHS`: what an experiment is, wherever it runs."""
    nested = nested_plain(settings)
    for key in _PATHS:
        set_dotted(nested, key, None)
    nested["student"].pop("graphs", None)  # the same numbers, launched in another way
    return nested


def training_seed(settings: ExperimentSettings) -> int:
    """The seed of the student's own training."""
    return settings.seed if settings.student_seed is None else settings.student_seed
