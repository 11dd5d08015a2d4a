"""What a teacher is trained for, as one object: everything in which the kinds of teachers differ.

A kind is one class in one file, which registers itself; nothing else asks for an objective by its name. Settings are
checked by these objects before any library of language models has been imported: what needs one imports it in the
method.
"""

# ruff: noqa: B027 - a kind overrides the checks that it has something to say about

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

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
    from src.teacher.settings import RankingKind, TeacherSettings

#: where the kinds are written
_WRITTEN_IN = ("src.teacher.item_head.objective", "src.teacher.title_lm.objective")


class TeacherObjective(ABC):
    """One kind of teacher: how it is checked, built, loaded, planned, trained, ranked by and described."""

    #: its value in ``teacher.objective``
    name: ClassVar[str]
    #: how it can rank the whole catalogue; the first is meant where nothing is said
    rankings: ClassVar[tuple[RankingKind, ...]]
    #: settings below ``teacher`` that no other kind reads, as dotted paths
    own_settings: ClassVar[tuple[str, ...]]
    #: the search space of `tune_teacher` where none is named
    search_space: ClassVar[str]
    #: whether it keeps the language-model head, and writes while it is asked
    writes: ClassVar[bool]
    #: the model card's sentence on what it answers
    answers: ClassVar[str]
    #: the function of `src.teacher.factory` that loads it, and the class of transformers that loads its base model
    loader: ClassVar[tuple[str, str]]

    # ----------------------------------------------------------------------------------------- before anything is read

    @abstractmethod
    def metrics(self, ks: Sequence[int]) -> tuple[str, ...]:
        """The metrics that are known after each epoch of a training, for cut-offs K."""

    def check_settings(self, settings: TeacherSettings) -> None:
        """Raise ``ValueError`` for settings that this kind contradicts."""

    def check_llm(self, settings: TeacherSettings) -> None:
        """Raise ``ModelError`` for a language model that this kind cannot use; its files are readable by now."""

    def check_data(self, settings: TeacherSettings, data: SequenceData) -> None:
        """Raise ``DataError`` for data that this kind cannot be trained on."""

    # -------------------------------------------------------------------------------------------------- what is needed

    def check_body(self, name: str, body: PreTrainedModel) -> None:
        """Raise ``ModelError`` where a model, with or without weights, is of a sort that this kind cannot use."""

    @abstractmethod
    def prompts(
        self, settings: TeacherSettings, id_map: IdMap, tokenizer: PreTrainedTokenizerBase, context: int | None
    ) -> TitlePieces:
        """What it will read and write.

        Args:
            settings: the teacher's.
            id_map: the items and their titles.
            tokenizer: the language model's; it gets the placeholders.
            context: the most tokens that the language model reads; None: no limit.

        Raises:
            DataError: a title is missing or too long.
            ConfigError: prompts that do not fit.
            ModelError: a tokenizer that turns titles into nothing.
        """

    def draw_lists(
        self, settings: TeacherSettings, samples: Mapping[str, Examples], num_items: int, seed: int
    ) -> dict[str, CandidateLists]:
        """The candidates of every sample by its name; empty for a kind that needs none."""
        return {}

    @abstractmethod
    def row_tokens(self, prompts: TitlePieces, rows: TensorExamples, lists: Tensor | None) -> Tensor:
        """``[N]`` int64: tokens of each training row; ``lists`` ``[N, n]`` are its candidates."""

    @abstractmethod
    def small_parts(self, width: int, num_items: int) -> list[nn.Module]:
        """Trained modules beside experts, projector and gate, for states of this width and V items."""

    @abstractmethod
    def logits(self, settings: TeacherSettings, shape: Shape, num_items: int) -> int:
        """How many logits a training row has, at most."""

    # ----------------------------------------------------------------------------------------------------- the teacher

    @abstractmethod
    def build(
        self, settings: TeacherSettings, id_map: IdMap, encoder: SASRec, llm: LanguageModel, device: torch.device
    ) -> GatedTeacher:
        """A new teacher; draws from torch's global stream. Raises what `build_teacher` raises."""

    @abstractmethod
    def load(self, folder: Path, settings: TeacherSettings, data: SequenceData, device: torch.device) -> GatedTeacher:
        """A saved teacher, in eval mode. Raises what `load_teacher` raises."""

    def save(self, folder: Path, teacher: GatedTeacher, data: SequenceData) -> None:
        """Write what this kind has besides the parts that every teacher has."""

    @abstractmethod
    def rehearse(self, teacher: GatedTeacher, history: Tensor, length: Tensor, target: Tensor) -> Tensor:
        """Do once, in eval mode, what training and asking will do; returns the loss of these few rows."""

    @abstractmethod
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
        """How it is trained.

        Args:
            teacher: as `build` made it.
            data: the dataset, split.
            samples: the examples that it learns from (``train``) and is judged on (``validation``).
            lists: as `draw_lists` gave them.
            seed: the run's.
            evaluation: how a ranking is judged.
            cost: ``[N]`` int64, as `row_tokens` counts.
        """

    @abstractmethod
    def trained(self, teacher: GatedTeacher, settings: TeacherSettings, seed: int) -> TrainedTeacher:
        """A loaded teacher as the pipeline uses it; ``seed`` is that of the run that trained it."""


_REGISTERED: dict[str, TeacherObjective] = {}


def register(kind: type[TeacherObjective]) -> type[TeacherObjective]:
    """Make a kind known by its name."""
    _REGISTERED[kind.name] = kind()
    return kind


def objectives() -> Mapping[str, TeacherObjective]:
    """Every kind by its name."""
    for module in _WRITTEN_IN:
        import_module(module)
    return _REGISTERED


def objective_of(name: str) -> TeacherObjective:
    """The kind with this name, which ``teacher.objective`` holds."""
    return objectives()[name]
