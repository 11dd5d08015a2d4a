"""What a teacher is trained for, as one object: how it is built, loaded, planned, trained, ranked by, and measured.

An objective is one class in a file `objective.py` of a package of this room, which registers itself; nothing else asks
for an objective by its name.
``teacher.objective=package.module:factory`` names one of your own, where ``factory()`` returns a `TeacherObjective`;
``tests/contracts/teacher_objective.py`` is the suite that any objective must pass.

Settings are checked by these objects before any library of language models has been imported: what needs one imports it
in the method.
"""

# ruff: noqa: B027 - an objective overrides the checks that it has something to say about

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, ClassVar

from src.core.errors import ConfigError
from src.core.plugins import build_own

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

_FIELD = "teacher.objective"
_ROOM = "src.teacher"


class TeacherObjective(ABC):
    """One kind of teacher: how it is checked, built, saved, planned, trained, ranked by and described."""

    #: its value in ``teacher.objective``; one of your own is known by its factory's
    name: ClassVar[str] = ""
    #: the values of ``teacher.export.ranking`` by which it can rank the whole catalogue; the first is meant by ``auto``
    rankings: ClassVar[tuple[str, ...]]
    #: settings below ``teacher`` that not every objective reads, and this one does, as dotted paths
    own_settings: ClassVar[tuple[str, ...]] = ()
    #: the search space of `tune_teacher` where none is named
    search_space: ClassVar[str] = "teacher"
    #: whether it keeps the language-model head, and generates text while it is asked
    generates: ClassVar[bool] = False
    #: the model card's sentence on what it answers
    card_sentence: ClassVar[str]
    #: the class of transformers that loads its base model, which the model card names
    auto_class: ClassVar[str] = "AutoModel"

    # ----------------------------------------------------------------------------------------- before anything is read

    @abstractmethod
    def metrics(self, ks: Sequence[int]) -> tuple[str, ...]:
        """Name the metrics that are known after each epoch of a training, for cut-offs K."""

    def check_settings(self, settings: TeacherSettings) -> None:
        """Raise ``ValueError`` for settings that this objective contradicts."""

    def accepts_ranking(self, name: str) -> bool:
        """Whether ``teacher.export.ranking`` may have this value."""
        return name in self.rankings

    def check_llm(self, settings: TeacherSettings) -> None:
        """Raise ``ModelError`` for a language model that this objective cannot use; its files are readable by now."""

    def check_data(self, settings: TeacherSettings, data: SequenceData) -> None:
        """Raise ``DataError`` for data that this objective cannot be trained on."""

    # -------------------------------------------------------------------------------------------------- what is needed

    def check_body(self, name: str, body: PreTrainedModel) -> None:
        """Raise ``ModelError`` where a model, with or without weights, is of a sort that cannot be used."""

    @abstractmethod
    def prompts(
        self, settings: TeacherSettings, id_map: IdMap, tokenizer: PreTrainedTokenizerBase, context: int | None
    ) -> TitlePieces:
        """Lay out what the teacher will read and write.

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
        """Draw the candidates of every sample, by the sample's name; none for an objective that needs none."""
        return {}

    @abstractmethod
    def row_tokens(self, prompts: TitlePieces, rows: TensorExamples, lists: Tensor | None) -> Tensor:
        """Count the tokens of each training row.

        Args:
            prompts: what `prompts` gave.
            rows: the training rows.
            lists: ``[N, n]``, their candidates; None where none were drawn.

        Returns:
            ``[N]`` int64.
        """

    @abstractmethod
    def small_parts(self, width: int, num_items: int) -> list[nn.Module]:
        """List the trained modules beside experts, projector and gate, for states of this width and V items."""

    @abstractmethod
    def logits(self, settings: TeacherSettings, shape: ModelShape, num_items: int) -> int:
        """Say how many logits a training row has, at most: the memory estimate counts them.

        Args:
            settings: the teacher's.
            shape: the language model's.
            num_items: V.
        """

    def own_export(self, settings: TeacherSettings) -> tuple[str, ...]:
        """Name the settings below ``export`` that decide its labels, of those that not every ranking reads."""
        return ()

    def decoded_tokens(self, settings: TeacherSettings) -> int:
        """Say how many tokens, of all its beams together, stand behind a prompt while the teacher is asked."""
        return 0

    # ----------------------------------------------------------------------------------------------------- the teacher

    def language_model(self, llm: LanguageModel) -> LanguageModel:
        """Prepare a loaded language model, which has no head; raises ``ModelError`` where that cannot be done."""
        return llm

    @abstractmethod
    def assemble(
        self,
        settings: TeacherSettings,
        llm: LanguageModel,
        adapters: GatedAdapters,
        encoder: SASRec,
        gate: nn.Module,
        prompts: TitlePieces,
    ) -> GatedTeacher:
        """Put a teacher together; draws from torch's global stream.

        Args:
            settings: the teacher's.
            llm: what `language_model` gave.
            adapters: the gated LoRA experts inside of ``llm``.
            encoder: the recommender whose user vector the gate reads.
            gate: from user vectors to the experts' weights.
            prompts: what `prompts` gave.
        """

    def save(self, folder: Path, teacher: GatedTeacher, data: SequenceData) -> None:
        """Write what this objective has besides the parts that every teacher has."""

    def restore(self, folder: Path, teacher: GatedTeacher, data: SequenceData) -> None:
        """Read what `save` wrote into a teacher whose weights are loaded.

        Raises ``ArtefactError`` for files that are damaged or belong to other items.
        """

    @abstractmethod
    def dry_run(self, teacher: GatedTeacher, history: Tensor, length: Tensor, target: Tensor) -> Tensor:
        """Do once, in eval mode, what training and asking will do, and return the loss of these few rows."""

    @abstractmethod
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
        """Plan how the teacher is trained.

        Args:
            teacher: as it was built.
            data: the dataset, split.
            samples: the examples that it learns from (``train``) and is judged on (``validation``).
            lists: as `draw_lists` gave them.
            seed: the run's.
            evaluation: how a ranking is judged.
            cost: ``[N]`` int64, as `row_tokens` counts.
        """

    @abstractmethod
    def trained(self, teacher: GatedTeacher, settings: TeacherSettings, seed: int) -> TrainedTeacher:
        """Wrap a loaded teacher as the pipeline uses it; ``seed`` is that of the run that trained it."""


_REGISTERED: dict[str, TeacherObjective] = {}


def register(kind: type[TeacherObjective]) -> type[TeacherObjective]:
    """Make an objective known by its name."""
    _REGISTERED[kind.name] = kind()
    return kind


def objectives() -> Mapping[str, TeacherObjective]:
    """Every objective of this project by its name."""
    _import_all()
    return _REGISTERED


@cache
def _import_all() -> None:
    """Import the module `objective` of every package of this room that has one: there it registers itself."""
    for package in iter_modules(import_module(_ROOM).__path__):
        module = f"{_ROOM}.{package.name}.objective"
        if package.ispkg and find_spec(module) is not None:
            import_module(module)


def objective_of(name: str) -> TeacherObjective:
    """The objective that ``teacher.objective`` names.

    Raises:
        ConfigError: there is none of that name, its factory cannot be imported, or it makes something else.
    """
    known = objectives()
    return known[name] if name in known else _own(name)


def known_objective(name: str) -> str:
    """Give back a name that `objective_of` finds; raise ``ValueError``, as checks of settings do, for another."""
    try:
        objective_of(name)
    except ConfigError as error:
        (problem,) = error.problems
        raise ValueError(f"{problem.rule} → {problem.next_step}") from None
    return name


@cache
def _own(name: str) -> TeacherObjective:
    """What a user's factory makes."""
    return build_own(_FIELD, name, _REGISTERED, "factory()", TeacherObjective, step=_CONTRACT)  # type: ignore[type-abstract]  # it is only asked for


_CONTRACT = "run tests/contracts/teacher_objective.py on it (docs/extend/add_a_teacher_objective.md)"
