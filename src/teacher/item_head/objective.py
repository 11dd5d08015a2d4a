"""The objective `item_ce`: an item head gives logits over the catalogue, trained by cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from src.core.metrics import metric_names
from src.teacher.objective import TeacherObjective, register

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from src.data.candidates import CandidateLists
    from src.data.examples import Examples, SequenceData
    from src.data.id_map import IdMap
    from src.data.tensor_examples import TensorExamples
    from src.student.architectures.sasrec import SASRec
    from src.student.settings import EvaluationSettings
    from src.teacher.backbone.llm import LanguageModel
    from src.teacher.ilora_model import GatedTeacher, ILoRATeacher
    from src.teacher.interfaces import Course
    from src.teacher.operations.inference import TrainedTeacher
    from src.teacher.operations.resource_estimate import Shape
    from src.teacher.prompts import TitlePieces
    from src.teacher.settings import TeacherSettings


@register
class ItemCE(TeacherObjective):
    """A teacher with an item head."""

    name = "item_ce"
    rankings = ("item_head",)
    own_settings = ("head", "train.head_learning_rate")
    search_space = "teacher"
    writes = False
    answers = "An item head gives logits over the whole catalogue."
    loader = ("load_teacher", "AutoModel")

    def metrics(self, ks: Sequence[int]) -> tuple[str, ...]:
        """Those of a full ranking."""
        return metric_names(ks)

    def prompts(
        self, settings: TeacherSettings, id_map: IdMap, tokenizer: PreTrainedTokenizerBase, context: int | None
    ) -> TitlePieces:
        """Prompts that ask for the item after a history."""
        from src.teacher.prompts import Prompts

        return Prompts(id_map, tokenizer, settings.prompt)

    def row_tokens(self, prompts: TitlePieces, rows: TensorExamples, lists: Tensor | None) -> Tensor:
        """Prompt tokens."""
        from src.teacher.prompts import Prompts

        assert isinstance(prompts, Prompts)
        return prompts.token_counts(rows.history, rows.length)

    def small_parts(self, width: int, num_items: int) -> list[nn.Module]:
        """The head."""
        from torch import nn

        return [nn.Linear(width, num_items)]

    def logits(self, settings: TeacherSettings, shape: Shape, num_items: int) -> int:
        """One an item."""
        return num_items

    def build(
        self, settings: TeacherSettings, id_map: IdMap, encoder: SASRec, llm: LanguageModel, device: torch.device
    ) -> GatedTeacher:
        """See `build_teacher`."""
        from src.teacher.factory import build_teacher

        return build_teacher(settings, id_map, encoder, llm, device)

    def load(self, folder: Path, settings: TeacherSettings, data: SequenceData, device: torch.device) -> GatedTeacher:
        """See `load_teacher`."""
        from src.teacher.factory import load_teacher

        return load_teacher(folder, settings, data, device)

    def rehearse(self, teacher: GatedTeacher, history: Tensor, length: Tensor, target: Tensor) -> Tensor:
        """Logits, their loss, and the titles of the targets alone."""
        from torch.nn.functional import cross_entropy

        teacher.embed_titles(target)
        return cross_entropy(_ranker(teacher)(history, length).logits, target)

    def course(
        self,
        teacher: GatedTeacher,
        data: SequenceData,
        samples: Mapping[str, Examples],
        lists: Mapping[str, CandidateLists],
        seed: int,
        evaluation: EvaluationSettings,
        cost: Tensor,
    ) -> Course:
        """See `item_course`."""
        from src.teacher.training import item_course

        return item_course(_ranker(teacher), data, samples, seed, evaluation, cost)

    def trained(self, teacher: GatedTeacher, settings: TeacherSettings, seed: int) -> TrainedTeacher:
        """It ranks by its logits."""
        from src.teacher.operations.inference import HeadTeacher

        return HeadTeacher(_ranker(teacher), settings.export)


def _ranker(teacher: GatedTeacher) -> ILoRATeacher:
    from src.teacher.ilora_model import ILoRATeacher

    assert isinstance(teacher, ILoRATeacher)
    return teacher
