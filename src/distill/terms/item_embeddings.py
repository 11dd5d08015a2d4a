"""Collaborative embedding distillation: the LLM's item embeddings, projected, join the student's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from src.core.settings import STRICT
from src.distill.data_bridge import TeachingRows
from src.distill.parts import Part
from src.distill.terms.base import Term
from src.student.base import SequenceStudent
from src.student.datamodule import StudentData
from src.student.new_items import TextMaps

if TYPE_CHECKING:
    from src.distill.settings import DistillSettings


@dataclass(frozen=True, config=STRICT)
class ItemEmbeddingSettings:
    """LLM item embeddings at the student's input; at its output, too, where both share one table (tied)."""

    ed_weight: Annotated[
        float, Field(ge=0, description="weight of the projected LLM item embeddings in the student's input")
    ] = 0.2


class TeacherItemInput(Part):
    """``ed_weight`` · (e_llm W^T + b), added to the student's item embeddings (collaborative embedding distillation).

    The frozen table ``[rows, W_llm]`` may have fewer rows than there are items; missing rows and the padding id read as
    zeros, and the bias is added at every place, padded ones too, as published (golden §2).
    """

    table: Tensor

    def __init__(self, item_embedding: Tensor, num_items: int, width: int, weight: float) -> None:
        super().__init__()
        missing = num_items + 1 - item_embedding.shape[0]
        self.register_buffer("table", F.pad(item_embedding, (0, 0, 0, missing)), persistent=False)
        self.projection = nn.Linear(item_embedding.shape[1], width)
        self.weight = weight

    def item_rows(self, items: Tensor | None = None) -> Tensor:
        """``[V + 1, D]``: what is added for every item and for padding; or ``[*, D]`` of ``items``."""
        projected: Tensor = self.projection(self.table if items is None else F.embedding(items, self.table))
        return self.weight * projected

    def extra(self, history: Tensor) -> Tensor:
        """``[B, L, D]``; projects the table or the gathered places, whichever is fewer rows."""
        if history.numel() < self.table.shape[0]:
            gathered: Tensor = self.weight * self.projection(F.embedding(history, self.table))
            return gathered
        return F.embedding(history, self.item_rows())

    def text_maps(self) -> TextMaps:
        """As `Part.text_maps`: what is added to any item's row."""
        weight, bias = self.weight * self.projection.weight, self.weight * self.projection.bias
        width = weight.shape[1]
        return TextMaps(
            weight.new_zeros(width), torch.cat([weight.T, bias.unsqueeze(0)]), None, weight.new_zeros(width + 1, 1)
        )


class ItemEmbeddings(Term):
    """A part, and no loss of its own."""

    name, arm, title = "item_input", "embedding", "student + embedding"
    Settings, switches, order = ItemEmbeddingSettings, ("ed_weight",), 30

    def part(
        self, student: SequenceStudent, settings: DistillSettings, teaching: TeachingRows, data: StudentData
    ) -> Part:
        """See `TeacherItemInput`."""
        teaching.require_item_embeddings("distill.ed_weight", settings.ed_weight)
        width = student.item_embeddings.embedding_dim
        return TeacherItemInput(teaching.item_embedding, student.num_items, width, settings.ed_weight)

    @property
    def needs_embeddings(self) -> bool:
        """The language model's item embeddings."""
        return True

    @property
    def needs_logits(self) -> bool:
        """It has no loss."""
        return False


TERM = ItemEmbeddings()
