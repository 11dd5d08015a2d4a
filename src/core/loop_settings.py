"""The settings of the one training loop, apart from it: a command line is judged before torch is imported."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from src.core.settings import STRICT


@dataclass(frozen=True, config=STRICT)
class LoopSettings:
    """How long and in what steps to train."""

    epochs: Annotated[int, Field(ge=1, description="passes over the training rows at most")] = 30
    batch_size: Annotated[int, Field(ge=1, description="rows per optimiser step")] = 256
    micro_batch_size: Annotated[
        int, Field(ge=0, description="rows per forward pass (gradient accumulation); 0: the whole batch at once")
    ] = 0
    patience: Annotated[
        int, Field(ge=1, description="evaluations without a better monitored metric before training stops")
    ] = 5
    monitor: Annotated[str, Field(min_length=1, description="validation metric that chooses the best epoch")] = (
        "ndcg_20"
    )
    gradient_clip: Annotated[float, Field(ge=0, description="largest gradient norm; 0: no clipping")] = 0.0
    ema: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="decay of the running mean of the weights, which is what is evaluated and kept; after step t, "
            "counted from 0, at most (1 + t) / (10 + t). 0: no mean, the weights themselves",
        ),
    ] = 0.0
    adapt_micro_batch: Annotated[
        bool,
        Field(
            description="out of memory halves the rows per forward pass instead of ending the training. Batch norm "
            "(the teacher's convolutional gate) sees one forward pass: fewer rows change a little what it learns"
        ),
    ] = False
    checkpoint_minutes: Annotated[
        float,
        Field(
            ge=0,
            description="minutes between savings within an epoch, from which a killed training goes on as if it had "
            "not been killed; an epoch of more is also saved before it is evaluated. After each evaluation a state of "
            "up to 16 MiB is saved anyway, a larger one when so many minutes have passed. 0: only after each "
            "evaluation",
        ),
    ] = 15.0
