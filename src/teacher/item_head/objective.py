"""The objective `item_ce`: an item head gives logits over the catalogue, trained by cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from src.core.metrics import metric_names
from src.teacher.objective import TeacherObjective, register

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from src.data.candidates import CandidateLists
    from src.data.examples import Examples, SequenceData
    from src.data.id_map import IdMap
    from src.data.tensor_examples import TensorExamples
    from src.student.architectures.sasrec import SASRec
    from src.student.settings import EvaluationSettings
    from src.teacher.backbone.gated_lora import GatedAdapters
    from src.teacher.backbone.llm import LanguageModel
    from src.teacher.ilora_model import GatedTeacher, ILoRATeacher
    from src.teacher.interfaces import TrainingPlan
    from src.teacher.operations.inference import TrainedTeacher
    from src.teacher.operations.model_shape import ModelShape
    from src.teacher.prompts import TitlePieces
    from src.teacher.settings import TeacherSettings


@register
class ItemCE(TeacherObjective):
    """A teacher with an item head."""

    name = "item_ce"
    rankings = ("item_head",)
    own_settings = ("head", "train.head_learning_rate")
    card_sentence = "An item head gives logits over the whole catalogue."

    def metrics(self, ks: Sequence[int]) -> tuple[str, ...]:
        """Name those of a full ranking."""
        return metric_names(ks)

    def prompts(
        self, settings: TeacherSettings, id_map: IdMap, tokenizer: PreTrainedTokenizerBase, context: int | None
    ) -> TitlePieces:
        """Lay out prompts that ask for the item after a history."""
        from src.teacher.prompts import Prompts

        return Prompts(id_map, tokenizer, settings.prompt)

    def row_tokens(self, prompts: TitlePieces, rows: TensorExamples, lists: Tensor | None) -> Tensor:
        """Count the prompt's tokens."""
        from src.teacher.prompts import Prompts

        assert isinstance(prompts, Prompts)
        return prompts.token_counts(rows.history, rows.length)

    def small_parts(self, width: int, num_items: int) -> list[nn.Module]:
        """List the head."""
        from torch import nn

        return [nn.Linear(width, num_items)]

    def logits(self, settings: TeacherSettings, shape: ModelShape, num_items: int) -> int:
        """Count one for each item."""
        return num_items

    def assemble(
        self,
        settings: TeacherSettings,
        llm: LanguageModel,
        adapters: GatedAdapters,
        encoder: SASRec,
        gate: nn.Module,
        prompts: TitlePieces,
    ) -> GatedTeacher:
        """Put a teacher with a new head together."""
        from src.teacher.ilora_model import ILoRATeacher
        from src.teacher.prompts import Prompts

        assert isinstance(prompts, Prompts)
        return ILoRATeacher(settings, llm, adapters, encoder, gate, prompts)

    def dry_run(self, teacher: GatedTeacher, history: Tensor, length: Tensor, target: Tensor) -> Tensor:
        """Compute logits with their loss, and embed the titles of the targets alone."""
        from torch.nn.functional import cross_entropy

        teacher.embed_titles(target)
        return cross_entropy(_with_head(teacher)(history, length).logits, target)

    def plan(
        self,
        teacher: GatedTeacher,
        data: SequenceData,
        samples: Mapping[str, Examples],
        lists: Mapping[str, CandidateLists],
        seed: int,
        evaluation: EvaluationSettings,
        cost: Tensor,
    ) -> TrainingPlan:
        """See `item_plan`."""
        from src.teacher.item_head.training import item_plan

        return item_plan(_with_head(teacher), data, samples, seed, evaluation, cost)

    def trained(self, teacher: GatedTeacher, settings: TeacherSettings, seed: int) -> TrainedTeacher:
        """Rank by the head's logits."""
        from src.teacher.item_head.inference import TrainedItemTeacher

        return TrainedItemTeacher(_with_head(teacher), settings.export)


def _with_head(teacher: GatedTeacher) -> ILoRATeacher:
    from src.teacher.ilora_model import ILoRATeacher

    assert isinstance(teacher, ILoRATeacher)
    return teacher
