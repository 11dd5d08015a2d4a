"""How a student looks and how it is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from src.core.loop_settings import LoopSettings
from src.core.settings import STRICT


@dataclass(frozen=True, config=STRICT)
class StudentSettings:
    """One sequential recommender and its training."""

    architecture: Annotated[
        Literal["sasrec", "gru4rec", "caser"], Field(description="SASRec, GRU4Rec or Caser, as DLLM2Rec trains them")
    ] = "sasrec"
    width: Annotated[int, Field(ge=1, description="D, width of the item embeddings")] = 64
    heads: Annotated[int, Field(ge=1, description="attention heads (SASRec); must divide the width")] = 1
    dropout: Annotated[float, Field(ge=0, lt=1, description="dropout rate in training")] = 0.1
    filter_sizes: Annotated[
        tuple[int, ...], Field(min_length=1, description="heights of Caser's horizontal filters, each ≤ history length")
    ] = (2, 3, 4)
    num_filters: Annotated[int, Field(ge=1, description="Caser's horizontal filters of each height")] = 16
    loss: Annotated[
        Literal["ce", "bce"],
        Field(description="full-catalogue cross-entropy, or BCE with sampled negatives (published)"),
    ] = "ce"
    negatives: Annotated[int, Field(ge=1, description="sampled negatives a row (BCE)")] = 1
    dro_weight: Annotated[float, Field(ge=0, description="weight of the DRO term of the student without a teacher")] = (
        0.0
    )
    dro_beta: Annotated[float, Field(gt=0, description="beta, the temperature inside DRO")] = 1.0
    learning_rate: Annotated[float, Field(gt=0, description="Adam's learning rate")] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, description="Adam's L2 weight decay")] = 0.0
    threads: Annotated[
        int, Field(ge=1, description="CPU threads of a student's training; part of what makes a run repeatable")
    ] = 1
    loop: Annotated[LoopSettings, Field(description="epochs, batches, early stopping")] = LoopSettings()

    def __post_init__(self) -> None:
        if self.architecture == "sasrec" and self.width % self.heads:
            raise ValueError(f"student.heads = {self.heads} must divide student.width = {self.width}")
        if any(size < 1 for size in self.filter_sizes):
            raise ValueError("student.filter_sizes must all be at least 1")


@dataclass(frozen=True, config=STRICT)
class EvaluationSettings:
    """How rankings are judged."""

    ks: Annotated[tuple[int, ...], Field(min_length=1, description="cut-offs K of Recall, NDCG and HitRatio")] = (
        5,
        10,
        20,
    )
    batch_size: Annotated[int, Field(ge=1, description="rows ranked at once")] = 2048
    mask_history: Annotated[
        bool, Field(description="take a row's history out of its ranking (the published evaluation does not)")
    ] = False

    def __post_init__(self) -> None:
        if any(k < 1 for k in self.ks):
            raise ValueError("evaluation.ks must all be at least 1")
