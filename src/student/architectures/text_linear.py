"""The linear model drawn towards similarities of the items' texts, as a model of its own: a table shows it beside the
linear model, and a student may have it for its prior."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from src.core.settings import STRICT
from src.student.architectures.linear import Linear, LinearSettings
from src.student.base import register


@dataclass(frozen=True, config=STRICT)
class TextLinearSettings(LinearSettings):
    """`linear` with a pull towards texts; the language model is needed to compute it, and not to serve it."""

    architecture: Annotated[str, Field(description="linear, drawn towards similarities of the items' texts")] = (
        "text_linear"
    )
    text_weight: Annotated[
        float,
        Field(gt=0, description="the weights are drawn towards so much of the similarity of the items' texts"),
    ] = 0.002


@register("text_linear", TextLinearSettings)
class TextLinear(Linear):
    """As `Linear`; the strength of the pull is searched beside decay and penalty."""

    settings_to_try = (
        {"text_weight": 0.002},
        {"text_weight": 0.001, "text_rarity": 0.0},
        {"text_weight": 0.002, "text_rarity": 0.0},
        {"text_weight": 0.001},
        {"text_weight": 0.002, "l2": 300.0},
        {"text_weight": 0.004, "text_rarity": 0.5},
        {"text_weight": 0.002, "decay": 0.9},
        {"text_weight": 0.002, "l2": 3000.0},
    )
