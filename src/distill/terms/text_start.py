"""Items that begin where their texts are: the table starts from whitened text embeddings in place of random numbers.

Training then moves the rows as it moves any; what is served is the table alone. An item that training never touches
keeps the place that its text gave it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from src.core.settings import STRICT
from src.distill.data_bridge import TeachingRows
from src.distill.parts import Part
from src.distill.terms.base import Term
from src.distill.terms.item_text import whitened
from src.student.base import SequenceStudent
from src.student.datamodule import StudentData

if TYPE_CHECKING:
    from src.distill.settings import DistillSettings


@dataclass(frozen=True, config=STRICT)
class TextStartSettings:
    """Where the item table starts."""

    text_start: Annotated[
        float,
        Field(
            ge=0,
            description="the item table starts from whitened text embeddings, so many times as large as the random "
            "numbers in whose place they are; 0: off",
        ),
    ] = 0.0


class TextStart(Term):
    """No part and no loss: the student's own table is written once, before training."""

    name, arm, title = "text_start", "start", "student + items that start from their text"
    Settings, switches, order = TextStartSettings, ("text_start",), 25

    @torch.no_grad()
    def part(
        self, student: SequenceStudent, settings: DistillSettings, teaching: TeachingRows, data: StudentData
    ) -> Part | None:
        """Directions that the embeddings do not have, and items that they do not tell of, keep their random numbers."""
        teaching.require_item_embeddings("distill.text_start", settings.text_start)
        table = student.item_embeddings.weight
        start = whitened(teaching.item_embedding, table.shape[1]).to(table)
        table[: len(start), : start.shape[1]] = settings.text_start * student.INITIAL_STD * start
        return None

    @property
    def needs_embeddings(self) -> bool:
        """The language model's item embeddings."""
        return True

    @property
    def needs_logits(self) -> bool:
        """It has no loss."""
        return False


TERM = TextStart()
