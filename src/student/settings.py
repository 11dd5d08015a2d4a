"""What every student has in common: how it is trained, and how rankings are judged.

An architecture adds its own fields in its own file (`src/student/architectures/`); `student.architecture` decides which
class a configuration becomes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationInfo, WrapValidator
from pydantic.dataclasses import dataclass

from src.core.loop_settings import LoopSettings
from src.core.settings import STRICT

#: the architecture of `conf/config.yaml`, and of settings that name none
DEFAULT_ARCHITECTURE = "transformer"

PriorName = Annotated[
    str,
    Field(
        pattern=r"^\w+$",
        description="a model in closed form whose scores are added to the network's: none, a name of conf/student, "
        "or auto: linear where the catalogue allows it",
    ),
]

#: an architecture has its own default
Window = Annotated[
    int, Field(ge=0, le=10_000, description="items of history that it reads, the latest ones; 0: dataset.window")
]


@dataclass(frozen=True, config=STRICT)
class StudentSettings:
    """Any student: one that is trained by gradient descent, or one that is computed in closed form."""

    architecture: Annotated[
        str, Field(min_length=1, description="one of conf/student, or package.module:factory for your own")
    ] = DEFAULT_ARCHITECTURE
    window: Window = 0
    threads: Annotated[
        int, Field(ge=1, description="CPU threads of a student's training; part of what makes a run repeatable")
    ] = 1

    @property
    def reads_text(self) -> bool:
        """Whether it is computed from the items' text embeddings, too."""
        return False


@dataclass(frozen=True, config=STRICT)
class NetworkSettings(StudentSettings):
    """A student that is trained by gradient descent."""

    width: Annotated[int, Field(ge=1, description="D, width of the item embeddings")] = 64
    dropout: Annotated[float, Field(ge=0, lt=1, description="dropout rate in training")] = 0.1
    prior: PriorName = "none"
    prior_folds: Annotated[
        int,
        Field(ge=2, le=20, description="parts of the users; the prior of a training row is fitted without its part"),
    ] = 2
    prior_minutes: Annotated[
        float, Field(gt=0, description="minutes of one core that a prior may cost by the estimate; auto: none above")
    ] = 60.0
    prior_gb: Annotated[
        float, Field(gt=0, description="GB of memory that a prior may cost by the estimate; auto: none above")
    ] = 24.0
    loss: Annotated[
        Literal["ce", "bce", "sampled", "gbce", "auto"],
        Field(
            description="ce: full-catalogue cross-entropy; bce: BCE with sampled negatives (published); sampled: "
            "softmax over the target and shared negatives, corrected for how they are drawn; gbce: calibrated BCE with "
            "shared negatives (Petrov & Macdonald, RecSys 2023); auto: ce up to a catalogue of 10,000 items, sampled "
            "above"
        ),
    ] = "ce"
    negatives: Annotated[int, Field(ge=1, description="sampled negatives a row (BCE)")] = 1
    shared_negatives: Annotated[
        int, Field(ge=1, description="negatives that the rows of a forward pass share (sampled, gbce)")
    ] = 256
    negatives_power: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="shared negatives are drawn by (training count + 1) to this power; 0: all items alike",
        ),
    ] = 0.0
    gbce_calibration: Annotated[
        float, Field(ge=0, le=1, description="t of gbce: 0 is plain BCE, 1 undoes what sampling does to the scores")
    ] = 0.75
    dro_weight: Annotated[float, Field(ge=0, description="weight of the DRO term of the student without a teacher")] = (
        0.0
    )
    dro_beta: Annotated[float, Field(gt=0, description="beta, the temperature inside DRO")] = 1.0
    unseen_negatives: Annotated[
        bool,
        Field(
            description="items that training never has for a target are wrong answers there even where they are scored "
            "from their texts (distill.text_weight, a prior drawn towards texts); false: nothing is learned against "
            "them"
        ),
    ] = False
    positions: Annotated[
        Literal["last", "all"],
        Field(
            description="last: a forward pass for each training row; all: neighbouring targets of one user share one "
            "(transformer; where the source has whole user sequences)"
        ),
    ] = "last"
    graphs: Annotated[
        Literal["auto", "off"],
        Field(
            description="auto: on a GPU, a step's forward and backward pass is captured as a CUDA graph where that is "
            "possible: the same numbers in fewer launches"
        ),
    ] = "off"
    learning_rate: Annotated[float, Field(gt=0, description="Adam's learning rate")] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, description="Adam's L2 weight decay")] = 0.0
    loop: Annotated[LoopSettings, Field(description="epochs, batches, early stopping")] = LoopSettings()


@dataclass(frozen=True, config=STRICT)
class ClosedFormSettings(StudentSettings):
    """A student that is computed from the training rows in one go, without gradient descent."""

    max_items: Annotated[
        int, Field(ge=2, description="the largest catalogue for which it is computed: its memory grows with V squared")
    ] = 20_000

    def too_large(self, num_items: int) -> bool:
        """Whether a catalogue is larger than it is computed for."""
        return num_items > self.max_items


def _by_architecture(value: Any, handler: Callable[[Any], Any], info: ValidationInfo) -> StudentSettings:
    """The settings class of the architecture that the value names."""
    if isinstance(value, StudentSettings):
        return value
    if not isinstance(value, Mapping):
        result: StudentSettings = handler(value)  # pydantic's own words
        return result
    from src.student.models import settings_type  # the architectures import this file

    adapter = TypeAdapter(settings_type(str(value.get("architecture", DEFAULT_ARCHITECTURE))))
    if info.mode == "json":
        return adapter.validate_json(json.dumps(dict(value)), strict=True)
    return adapter.validate_python(dict(value))


#: the field of an experiment that holds any student's settings
AnyStudentSettings = Annotated[StudentSettings, WrapValidator(_by_architecture)]


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
        bool,
        Field(description="take all that a user met before out of the ranking (the published evaluation does not)"),
    ] = False
    sample_rows: Annotated[
        int,
        Field(
            ge=0,
            description="validation rows that training looks at, the same ones in every training, for splits of more; "
            "0: all. Final results are always of all rows",
        ),
    ] = 0

    def __post_init__(self) -> None:
        if any(k < 1 for k in self.ks):
            raise ValueError("evaluation.ks must all be at least 1")
