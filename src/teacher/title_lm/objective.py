"""The objective `title_lm`: the next item's title is written, as published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from src.teacher.objective import TeacherObjective, register
from src.teacher.settings import TITLE_MONITOR

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from src.data.candidates import CandidateLists
    from src.data.examples import Examples, SequenceData
    from src.data.id_map import IdMap
    from src.data.tensor_examples import TensorExamples
    from src.student.architectures.sasrec import SASRec
    from src.student.settings import EvaluationSettings
    from src.teacher.backbone.llm import LanguageModel
    from src.teacher.ilora_model import GatedTeacher
    from src.teacher.interfaces import Course
    from src.teacher.operations.inference import TrainedTeacher
    from src.teacher.operations.resource_estimate import Shape
    from src.teacher.prompts import TitlePieces
    from src.teacher.settings import TeacherSettings
    from src.teacher.title_lm.model import TitleTeacher

#: what is known after each epoch of such a teacher, see `src.teacher.title_lm.generation.title_metrics`
TITLE_METRICS = (TITLE_MONITOR, "valid_ratio", "hit_ratio_1_of_valid")

#: the folder of a saved teacher in which its candidate lists lie
CANDIDATES_FOLDER = "candidates"


@register
class TitleLM(TeacherObjective):
    """A teacher that writes titles."""

    name = "title_lm"
    rankings = ("constrained", "grounded")
    own_settings = ("title",)
    search_space = "teacher_title"
    writes = True
    answers = "It writes the title of the next item; candidates of each split are in `candidates/`."
    loader = ("load_title_teacher", "AutoModelForCausalLM")

    def metrics(self, ks: Sequence[int]) -> tuple[str, ...]:
        """Those of generated answers, whatever K."""
        return TITLE_METRICS

    def check_settings(self, settings: TeacherSettings) -> None:
        """Its epochs are judged by generated titles alone."""
        if settings.train.loop.monitor != TITLE_MONITOR:
            raise ValueError(
                f"teacher.train.loop.monitor = {settings.train.loop.monitor!r} must be {TITLE_MONITOR} "
                "with teacher.objective = title_lm: its epochs are judged by generated titles"
            )

    def check_llm(self, settings: TeacherSettings) -> None:
        """See `check_writer`."""
        from src.teacher.title_lm.preflight import check_writer

        check_writer(settings)

    def check_data(self, settings: TeacherSettings, data: SequenceData) -> None:
        """See `check_candidates`."""
        from src.teacher.title_lm.preflight import check_candidates

        check_candidates(settings, data)

    def check_body(self, name: str, body: PreTrainedModel) -> None:
        """It must be a decoder."""
        from src.teacher.backbone.llm import is_decoder
        from src.teacher.title_lm.language_head import require_decoder

        require_decoder(is_decoder(body.config), name)

    def prompts(
        self, settings: TeacherSettings, id_map: IdMap, tokenizer: PreTrainedTokenizerBase, context: int | None
    ) -> TitlePieces:
        """Prompts with candidates, and answers."""
        from src.teacher.title_lm.prompts import TitlePrompts

        return TitlePrompts(id_map, tokenizer, settings.prompt, settings.title, context)

    def draw_lists(
        self, settings: TeacherSettings, samples: Mapping[str, Examples], num_items: int, seed: int
    ) -> dict[str, CandidateLists]:
        """Drawn once; raises ``DataError`` when the catalogue has too few items."""
        from src.teacher.title_lm.training import draw_lists

        return draw_lists(settings, samples, num_items, seed)

    def row_tokens(self, prompts: TitlePieces, rows: TensorExamples, lists: Tensor | None) -> Tensor:
        """Tokens of prompt and answer."""
        from src.teacher.title_lm.prompts import TitlePrompts
        from src.teacher.title_lm.training import row_tokens

        assert isinstance(prompts, TitlePrompts)
        return row_tokens(prompts, rows, lists)

    def small_parts(self, width: int, num_items: int) -> list[nn.Module]:
        """Nothing: its head is the language model's own."""
        return []

    def logits(self, settings: TeacherSettings, shape: Shape, num_items: int) -> int:
        """The vocabulary for as many tokens as a title may have."""
        return shape.vocabulary * settings.prompt.title_tokens

    def build(
        self, settings: TeacherSettings, id_map: IdMap, encoder: SASRec, llm: LanguageModel, device: torch.device
    ) -> GatedTeacher:
        """See `build_title_teacher`."""
        from src.teacher.factory import build_title_teacher

        return build_title_teacher(settings, id_map, encoder, llm, device)

    def load(self, folder: Path, settings: TeacherSettings, data: SequenceData, device: torch.device) -> GatedTeacher:
        """See `load_title_teacher`."""
        from src.teacher.factory import load_title_teacher

        return load_title_teacher(folder, settings, data, device)

    def save(self, folder: Path, teacher: GatedTeacher, data: SequenceData) -> None:
        """The candidate lists, by split."""
        from src.data.candidates import save_candidates

        for split, lists in _writer(teacher).candidates.items():
            save_candidates(folder / CANDIDATES_FOLDER / split, lists, data.fingerprints())

    def rehearse(self, teacher: GatedTeacher, history: Tensor, length: Tensor, target: Tensor) -> Tensor:
        """An answer's loss, a written answer, and a ranking of the catalogue."""
        from src.teacher.title_lm.dry_run import rank_once
        from src.teacher.title_lm.generation import write_answers
        from src.teacher.title_lm.training import answer_loss

        writer = _writer(teacher)
        write_answers(writer, history, length)
        rank_once(writer, history, length)
        forward = writer(writer.question(history, length), target)
        return answer_loss(forward.logits, forward.labels)

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
        """See `title_course`."""
        from src.teacher.title_lm.training import title_course

        return title_course(_writer(teacher), samples, lists, seed, cost)

    def trained(self, teacher: GatedTeacher, settings: TeacherSettings, seed: int) -> TrainedTeacher:
        """It ranks as the settings say, and its answers are judged over its candidates."""
        from src.teacher.operations.inference import WritingTeacher

        return WritingTeacher(_writer(teacher), settings, seed)


def _writer(teacher: GatedTeacher) -> TitleTeacher:
    from src.teacher.title_lm.model import TitleTeacher

    assert isinstance(teacher, TitleTeacher)
    return teacher
