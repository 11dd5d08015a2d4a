"""The objective `title_lm`: the next item's title is written, as published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from src.core.errors import ConfigError
from src.teacher.objective import TeacherObjective, register
from src.teacher.title_lm.ranking_ways import ranking_way, ranking_ways

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from src.data.candidates import CandidateLists
    from src.data.examples import Examples, SequenceData
    from src.data.id_map import IdMap
    from src.data.tensor_examples import TensorExamples
    from src.student.architectures.sasrec import SASRec
    from src.student.settings import EvaluationSettings
    from src.teacher.backbone.gated_lora import GatedAdapters
    from src.teacher.backbone.llm import LanguageModel
    from src.teacher.ilora_model import GatedTeacher
    from src.teacher.interfaces import TrainingPlan
    from src.teacher.operations.inference import TrainedTeacher
    from src.teacher.operations.model_shape import ModelShape
    from src.teacher.prompts import TitlePieces
    from src.teacher.settings import TeacherSettings
    from src.teacher.title_lm.model import TitleTeacher

#: ``train.loop.monitor`` of a teacher that writes titles: right answers over all rows, by generation
TITLE_MONITOR = "hit_ratio_1"
#: what is known after each epoch of such a teacher, see `src.teacher.title_lm.generation.title_metrics`
TITLE_METRICS = (TITLE_MONITOR, "valid_ratio", "hit_ratio_1_of_valid")

#: the folder of a saved teacher in which its candidate lists lie
CANDIDATES_FOLDER = "candidates"


@register
class TitleLM(TeacherObjective):
    """A teacher that writes titles."""

    name = "title_lm"
    rankings = tuple(ranking_ways())
    own_settings = ("title",)
    search_space = "teacher_title"
    generates = True
    card_sentence = "It writes the title of the next item; candidates of each split are in `candidates/`."
    auto_class = "AutoModelForCausalLM"

    def metrics(self, ks: Sequence[int]) -> tuple[str, ...]:
        """Name those of generated answers, whatever K."""
        return TITLE_METRICS

    def check_settings(self, settings: TeacherSettings) -> None:
        """Require the one metric by which its epochs are judged, and what the way of ranking asks for."""
        if settings.train.loop.monitor != TITLE_MONITOR:
            raise ValueError(
                f"teacher.train.loop.monitor = {settings.train.loop.monitor!r} must be {TITLE_MONITOR} "
                "with teacher.objective = title_lm: its epochs are judged by generated titles"
            )
        if self.accepts_ranking(settings.ranking):
            try:
                way = ranking_way(settings.ranking)
            except ConfigError as error:
                raise ValueError(str(error)) from None
            way.check_settings(settings)

    def accepts_ranking(self, name: str) -> bool:
        """Accept the ways of this project, and one of the user's own."""
        return super().accepts_ranking(name) or ":" in name

    def check_llm(self, settings: TeacherSettings) -> None:
        """See `check_writer`."""
        from src.teacher.title_lm.preflight import check_writer

        check_writer(settings)

    def check_data(self, settings: TeacherSettings, data: SequenceData) -> None:
        """See `check_candidates`."""
        from src.teacher.title_lm.preflight import check_candidates

        check_candidates(settings, data)

    def check_body(self, name: str, body: PreTrainedModel) -> None:
        """Require a decoder."""
        from src.teacher.backbone.language_head import require_decoder
        from src.teacher.backbone.model_config import is_decoder

        require_decoder(is_decoder(body.config), name)

    def prompts(
        self, settings: TeacherSettings, id_map: IdMap, tokenizer: PreTrainedTokenizerBase, context: int | None
    ) -> TitlePieces:
        """Lay out prompts with candidates, and answers."""
        from src.teacher.title_lm.prompts import TitlePrompts

        return TitlePrompts(id_map, tokenizer, settings.prompt, settings.title, context)

    def draw_lists(
        self, settings: TeacherSettings, samples: Mapping[str, Examples], num_items: int, seed: int
    ) -> dict[str, CandidateLists]:
        """Draw them once; raises ``DataError`` when the catalogue has too few items."""
        from src.teacher.title_lm.training import draw_lists

        return draw_lists(settings, samples, num_items, seed)

    def row_tokens(self, prompts: TitlePieces, rows: TensorExamples, lists: Tensor | None) -> Tensor:
        """Count the tokens of prompt and answer."""
        from src.teacher.title_lm.prompts import TitlePrompts
        from src.teacher.title_lm.training import row_tokens

        assert isinstance(prompts, TitlePrompts)
        return row_tokens(prompts, rows, lists)

    def small_parts(self, width: int, num_items: int) -> list[nn.Module]:
        """List nothing: the head is the language model's own, and frozen."""
        return []

    def logits(self, settings: TeacherSettings, shape: ModelShape, num_items: int) -> int:
        """Count the vocabulary for as many tokens as a title may have."""
        return shape.vocabulary * settings.prompt.title_tokens

    def own_export(self, settings: TeacherSettings) -> tuple[str, ...]:
        """Name those of the way of ranking."""
        return ranking_way(settings.ranking).own_export

    def decoded_tokens(self, settings: TeacherSettings) -> int:
        """Count a title for each sequence that the way of ranking follows at once."""
        return settings.prompt.title_tokens * ranking_way(settings.ranking).sequences(settings.export)

    def language_model(self, llm: LanguageModel) -> LanguageModel:
        """Put the language-model head back."""
        from src.teacher.backbone.language_head import with_language_head

        return with_language_head(llm)

    def assemble(
        self,
        settings: TeacherSettings,
        llm: LanguageModel,
        adapters: GatedAdapters,
        encoder: SASRec,
        gate: nn.Module,
        prompts: TitlePieces,
    ) -> GatedTeacher:
        """Put a teacher that writes together; nothing is drawn but the projector."""
        from src.teacher.title_lm.model import TitleTeacher
        from src.teacher.title_lm.prompts import TitlePrompts

        assert isinstance(prompts, TitlePrompts)
        return TitleTeacher(settings, llm, adapters, encoder, gate, prompts)

    def save(self, folder: Path, teacher: GatedTeacher, data: SequenceData) -> None:
        """Write the candidate lists, by split."""
        from src.data.candidates import save_candidates

        for split, lists in _writer(teacher).candidates.items():
            save_candidates(folder / CANDIDATES_FOLDER / split, lists, data.fingerprints())

    def restore(self, folder: Path, teacher: GatedTeacher, data: SequenceData) -> None:
        """Read the candidate lists, by split."""
        from src.data.candidates import load_candidates

        folders = sorted(path for path in (folder / CANDIDATES_FOLDER).glob("*") if path.is_dir())
        expected = {"id_map": data.id_map.fingerprint}
        _writer(teacher).candidates = {path.name: load_candidates(path, expected) for path in folders}

    def dry_run(self, teacher: GatedTeacher, history: Tensor, length: Tensor, target: Tensor) -> Tensor:
        """Write an answer, rank the catalogue, and compute an answer's loss."""
        import torch

        from src.teacher.title_lm.generation import write_answers
        from src.teacher.title_lm.training import answer_loss

        writer = _writer(teacher)
        write_answers(writer, history, length)
        with torch.no_grad():
            ranking_way(writer.settings.ranking).dry_run(writer, history, length)
        forward = writer(writer.question(history, length), target)
        return answer_loss(forward.logits, forward.labels)

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
        """See `title_plan`."""
        from src.teacher.title_lm.training import title_plan

        return title_plan(_writer(teacher), samples, lists, seed, cost)

    def trained(self, teacher: GatedTeacher, settings: TeacherSettings, seed: int) -> TrainedTeacher:
        """Rank as the settings say, and judge answers over the candidates that travel with the teacher."""
        from src.teacher.title_lm.inference import TrainedTitleTeacher

        return TrainedTitleTeacher(_writer(teacher), settings, seed)


def _writer(teacher: GatedTeacher) -> TitleTeacher:
    from src.teacher.title_lm.model import TitleTeacher

    assert isinstance(teacher, TitleTeacher)
    return teacher
