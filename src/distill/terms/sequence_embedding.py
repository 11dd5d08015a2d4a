"""Output-level embedding distillation: the student's representation, projected, towards the teacher's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from src.core.errors import ConfigError
from src.core.settings import STRICT
from src.distill.data_bridge import TeachingRows
from src.distill.kd_losses import embedding_loss
from src.distill.terms.base import Step, Term
from src.student.base import SequenceStudent
from src.student.datamodule import StudentData

if TYPE_CHECKING:
    from src.distill.settings import DistillSettings


@dataclass(frozen=True, config=STRICT)
class SequenceEmbeddingSettings:
    """Distance to the teacher's sequence embeddings."""

    embedding_loss_weight: Annotated[
        float, Field(ge=0, description="weight of the output-level embedding loss; 0: off")
    ] = 0.0
    embedding_loss: Annotated[
        Literal["mse", "cosine"], Field(description="distance of the output-level embedding loss")
    ] = "mse"


class SequenceEmbedding(Term):
    """``embedding_loss_weight`` · distance."""

    name, arm, title = "output_projection", "embedding", "student + embedding"
    Settings, switches, order = SequenceEmbeddingSettings, ("embedding_loss_weight",), 40
    reads_labels = True

    @property
    def needs_embeddings(self) -> bool:
        """The language model's sequence embeddings."""
        return True

    def part(
        self, student: SequenceStudent, settings: DistillSettings, teaching: TeachingRows, data: StudentData
    ) -> nn.Linear:
        """The projection to the teacher's width, which nothing needs afterwards."""
        width = teaching.sequence_embedding.shape[1]
        if width == 0:
            raise ConfigError.one(
                "distill.embedding_loss_weight",
                settings.embedding_loss_weight,
                "these teacher outputs hold no sequence embeddings",
                "set it to 0, or use outputs that run_teacher made",
            )
        return nn.Linear(student.representation, width)

    def loss(self, step: Step) -> Tensor:
        """Summed over taught rows, divided by B."""
        projected = step.model.parts[self.name](step.representation)
        teacher, kind = step.teaching.embedding(step.rows), step.settings.embedding_loss
        weight: float = step.settings.embedding_loss_weight
        return weight * embedding_loss(projected, teacher, step.taught, kind)


TERM = SequenceEmbedding()
