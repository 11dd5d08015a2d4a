"""An item's row between a free one and one from its text, by how often the item was seen in training.

A free row that training never touched says nothing, so an item without training interactions could never be
recommended. Here its row and bias come from its text embedding, projected. A gate mixes the two: 1 for an item that was
never a target, falling with the count of the others. In training, rare items' free rows are left out now and then, as
if these items had never been seen: that is how the projection learns to stand alone.
"""

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
class ItemTextSettings:
    """Rows and biases of rarely seen items from their text."""

    text_weight: Annotated[
        float,
        Field(ge=0, le=1, description="most that a seen item's row takes from its text; 0: off, unseen items too"),
    ] = 0.0
    text_dropout: Annotated[
        float, Field(ge=0, le=1, description="how often an item seen once is treated as never seen in a training step")
    ] = 0.3


#: a direction of the embeddings counts when its spread is more than this share of the largest
_LEAST = 1e-6


def whitened(embedding: Tensor, width: int) -> Tensor:
    """The first ``width`` principal directions of embeddings ``[V, W]``, each of unit variance: ``[V, ≤ width]``."""
    return _principal(embedding, width)[0]


def _principal(embedding: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """`whitened`, and what gives it of other embeddings: ``(x - mean) @ whitening``, ``[W]`` and ``[W, ≤ width]``.

    Directions in which the embeddings do not differ are left out: whitened, they would be rounding errors.
    """
    mean = embedding.mean(dim=0)
    u, size, v = torch.linalg.svd((embedding - mean).double(), full_matrices=False)
    kept = min(width, max(1, int((size > _LEAST * size[0]).sum())))
    scale = len(embedding) ** 0.5
    whitening = v[:kept].T * (scale / size[:kept].clamp(min=1e-30))
    return (u[:, :kept] * scale).float(), mean, whitening.float()


class TextRows(Part):
    """Projected text embeddings behind a gate; one projection each for input and output unless these are tied."""

    text: Tensor
    mean: Tensor
    whitening: Tensor
    seen: Tensor
    log_count: Tensor

    def __init__(self, student: SequenceStudent, embedding: Tensor, counts: Tensor, settings: DistillSettings) -> None:
        super().__init__()
        missing = student.num_items - len(embedding)
        features, mean, whitening = _principal(embedding, 2 * student.item_embeddings.embedding_dim)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("whitening", whitening, persistent=False)
        self.register_buffer("text", F.pad(features, (0, 0, 0, missing)), persistent=False)
        self.register_buffer("seen", counts > 0, persistent=False)
        self.register_buffer("log_count", counts.float().log1p(), persistent=False)
        #: whether the prior knows an item that it never saw from its text
        self.prior_reads_text = student.prior is not None and student.prior.settings.reads_text
        # a tuple: the table belongs to the student
        self._table = (student.item_embeddings,)
        self.tied = student.tied
        self.largest, self.rate = settings.text_weight, settings.text_dropout
        width = self.text.shape[1]
        self.row = nn.Linear(width, student.item_embeddings.embedding_dim, bias=False)
        self.output_row = None if student.tied else nn.Linear(width, student.representation, bias=False)
        self.bias = nn.Linear(width, 1)
        for layer in (self.row, self.output_row, self.bias):
            if layer is not None:
                nn.init.normal_(layer.weight, std=student.INITIAL_STD / width**0.5)
        nn.init.zeros_(self.bias.bias)
        #: the gate is ``largest`` · σ(level - slope · log(1 + count)) for items that were seen
        self.level, self.slope = nn.Parameter(torch.zeros(())), nn.Parameter(torch.ones(()))
        self._dropped: Tensor | None = None

    def _gate(self, items: Tensor | None) -> Tensor:
        """``[V, 1]``, or ``[*, 1]`` of ``items``: how much of an item's row is text."""
        seen, log_count = _at(self.seen, items), _at(self.log_count, items)
        gate = self.largest * torch.sigmoid(self.level - self.slope * log_count)
        left_out = self._dropped_now
        known = seen if left_out is None else seen & ~_at(left_out, items)
        return torch.where(known, gate, torch.ones_like(gate)).unsqueeze(-1)

    @property
    def _dropped_now(self) -> Tensor | None:
        """What `begin` left out; nothing but in training."""
        return self._dropped if self.training else None

    def begin(self) -> None:
        """Which seen items this step treats as never seen: ``rate`` / sqrt(count) of them."""
        self._dropped = None
        if self.training and self.rate > 0:
            chance = self.rate / self.log_count.expm1().clamp(min=1).sqrt()
            self._dropped = torch.rand(chance.shape, device=chance.device) < chance

    def item_rows(self, items: Tensor | None = None) -> Tensor:
        """``[V + 1, D]``, or ``[*, D]`` of ``items``: gate · (text - free); 0 for padding."""
        table = self._table[0]
        if items is None:
            return F.pad(self._gate(None) * (self.row(self.text) - table.weight[:-1]), (0, 0, 0, 1))
        real = items.clamp(max=len(self.text) - 1)
        rows = self._gate(real) * (self.row(self.text[real]) - table(items))
        return rows * (items < len(self.text)).unsqueeze(-1)

    def extra(self, history: Tensor) -> Tensor:
        """As `Part.extra`; a new step begins with it."""
        self.begin()
        return F.embedding(history, self.item_rows())

    def output(self, weight: Tensor, bias: Tensor, items: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Add the text rows to the output rows, see `Part.output`."""
        gate, text = self._gate(items), _at(self.text, items)
        if self.output_row is not None:
            weight = weight + gate * (self.output_row(text) - weight)
        return weight, bias + gate.squeeze(1) * (self.bias(text).squeeze(1) - bias)

    def text_maps(self) -> TextMaps:
        """As `Part.text_maps`: row and bias of an item whose gate is open, as that of any item never seen is."""

        def composed(layer: nn.Linear) -> Tensor:
            constant = layer.bias if layer.bias is not None else layer.weight.new_zeros(layer.out_features)
            return torch.cat([self.whitening @ layer.weight.T, constant.unsqueeze(0)])

        output = None if self.output_row is None else composed(self.output_row)
        return TextMaps(self.mean, composed(self.row), output, composed(self.bias))

    def prior(self, scores: Tensor, items: Tensor | None = None) -> Tensor:
        """An item that is treated as never seen has nothing from the prior either, unless that reads its text."""
        left_out = None if self.prior_reads_text else self._dropped_now
        return scores if left_out is None else scores.masked_fill(_at(left_out, items), 0.0)


def _at(values: Tensor, items: Tensor | None) -> Tensor:
    return values if items is None else values[items]


class ItemText(Term):
    """A part, and no loss of its own."""

    name, arm, title = "item_text", "text", "student + text of items"
    Settings, switches, order = ItemTextSettings, ("text_weight",), 35

    def part(
        self, student: SequenceStudent, settings: DistillSettings, teaching: TeachingRows, data: StudentData
    ) -> Part:
        """See `TextRows`."""
        teaching.require_item_embeddings("distill.text_weight", settings.text_weight)
        return TextRows(student, teaching.item_embedding, data.item_counts, settings)

    @property
    def needs_embeddings(self) -> bool:
        """The language model's item embeddings."""
        return True

    @property
    def scores_unseen(self) -> bool:
        """Its row is made of its text."""
        return True

    @property
    def needs_logits(self) -> bool:
        """It has no loss."""
        return False


TERM = ItemText()
