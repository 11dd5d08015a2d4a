"""How the teacher (iLoRA) is built, trained, and asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from src.core.loop_settings import LoopSettings
from src.core.settings import STRICT, deciding
from src.student.architectures.sasrec import SASRecSettings
from src.teacher.objective import known_objective, objective_of, objectives

#: `llm` value that builds and pretrains a small language model from the dataset's own text
TINY = "tiny"
#: `lora.target_modules` value that adapts every linear layer of the language model
AUTO = "auto"

#: `quantise` value of a language model in its own precision
NOT_QUANTISED: Literal["none"] = "none"
Quantise = Literal["none", "8bit", "4bit"]

Select = Literal["random", "most_recent"]


@dataclass(frozen=True, config=STRICT)
class LoraSettings:
    """K experts, stored side by side as one LoRA of the total rank."""

    rank: Annotated[int, Field(ge=1, description="r, rank of all experts together; a multiple of experts")] = 16
    experts: Annotated[int, Field(ge=1, description="E, number of LoRA experts, each of rank r / E")] = 4
    alpha: Annotated[float, Field(gt=0, description="LoRA's alpha; the adapters' output is scaled by alpha / r")] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="dropout on the adapters' input in training")] = 0.0
    target_modules: Annotated[
        tuple[str, ...],
        Field(min_length=1, description="names of the adapted linear layers; [auto]: every one but poolers and heads"),
    ] = (AUTO,)
    compute: Annotated[
        Literal["float32", "base"],
        Field(
            description="type in which adapters are multiplied; their weights are float32 either way. float32: as "
            "published; base: the LLM's, which in half precision spares a float32 copy of every activation"
        ),
    ] = "float32"

    def __post_init__(self) -> None:
        if self.rank % self.experts:
            raise ValueError(f"teacher.lora.rank = {self.rank} must be a multiple of lora.experts = {self.experts}")
        if AUTO in self.target_modules and len(self.target_modules) > 1:
            raise ValueError(f"teacher.lora.target_modules names layers besides {AUTO!r}: leave one of them out")


@dataclass(frozen=True, config=STRICT)
class GateSettings:
    """The network from the recommender's user vector to the experts' weights."""

    kind: Annotated[
        Literal["convolutional", "linear", "mlp"], Field(description="convolutional: the published router")
    ] = "convolutional"
    dropout: Annotated[float, Field(ge=0, lt=1, description="linear: dropout on the gate's logits in training")] = 0.0
    noise: Annotated[
        float, Field(ge=0, description="linear, mlp: deviation of the noise on the logits in training")
    ] = 0.0
    top_k: Annotated[int, Field(ge=0, description="linear: experts that keep a weight; 0: all")] = 0
    hidden: Annotated[int, Field(ge=1, description="mlp: width of the hidden layer")] = 128
    learning_rate_factor: Annotated[
        float, Field(gt=0, description="the gate's learning rate as a multiple of the adapters'")
    ] = 0.3

    def __post_init__(self) -> None:
        readers = {"dropout": ("linear",), "noise": ("linear", "mlp"), "top_k": ("linear",)}
        for name, kinds in readers.items():
            if getattr(self, name) and self.kind not in kinds:
                raise ValueError(f"teacher.gate.{name} is read only by gate.kind {' and '.join(kinds)}")


@dataclass(frozen=True, config=STRICT)
class PromptSettings:
    """What the language model reads."""

    history_titles: Annotated[int, Field(ge=1, description="most recent titles of the history in the prompt")] = 10
    title_tokens: Annotated[int, Field(ge=1, description="tokens of a title at most; the rest is cut off")] = 24
    max_tokens: Annotated[
        int, Field(ge=8, description="tokens of a prompt at most; the oldest titles give way to the newest")
    ] = 160


@dataclass(frozen=True, config=STRICT)
class TitleSettings:
    """What objective = title_lm adds: candidates in the prompt, answers as titles, the published schedules."""

    candidates: Annotated[int, Field(ge=2, description="n, titles in a candidate list, the target among them")] = 20
    show_candidates: Annotated[
        bool, Field(description="the prompt lists the candidates; false: it holds the history alone")
    ] = True
    curriculum: Annotated[
        Literal["whole_run", "as_released", "none"],
        Field(
            description="share of steps whose prompts hold item embeddings. whole_run: grows from 0 to 1 over the run; "
            "as_released: starts anew each epoch, from epoch 2 without warm-up; none: all steps"
        ),
    ] = "whole_run"
    answer: Annotated[
        Literal["corrected", "as_released"],
        Field(
            description="corrected: title and end-of-text token; as_released: a second begin-of-text token (learned "
            "too), title, newline"
        ),
    ] = "corrected"
    start_rate: Annotated[
        float, Field(ge=0, le=1, description="learning rates where the warm-up starts, as a share of their peaks")
    ] = 0.01
    minimum_rate: Annotated[
        float, Field(ge=0, le=1, description="learning rates where the cosine ends, as a share of their peaks")
    ] = 0.01
    beams: Annotated[int, Field(ge=1, description="beams when an answer is generated; 1: greedy")] = 1


@dataclass(frozen=True, config=STRICT)
class HeadSettings:
    """Where the item head starts. It is trained from there."""

    init: Annotated[
        Literal["recommender", "title", "random"],
        Field(
            description="recommender: the encoder's item vectors, reached by a regression from the LLM's states; "
            "title: similarity of the LLM's states to its title embeddings, and popularity; random"
        ),
    ] = "recommender"
    fit_rows: Annotated[int, Field(ge=2, description="training examples from which a start is computed")] = 5000
    ridge: Annotated[float, Field(gt=0, description="penalty of the regression, in units of the states' variance")] = (
        0.3
    )
    sharpness: Annotated[
        float, Field(gt=0, description="deviation of the starting logits over the catalogue (init = title)")
    ] = 1.0


@dataclass(frozen=True, config=STRICT)
class TeacherTrainSettings:
    """Steps, learning rates and their schedule (linear warm-up, then a cosine; see also `TitleSettings`)."""

    loop: Annotated[LoopSettings, Field(description="epochs, batches, early stopping")] = LoopSettings(
        epochs=1, batch_size=32, patience=1, gradient_clip=1.0, adapt_micro_batch=True
    )
    learning_rate: Annotated[float, Field(gt=0, description="AdamW's learning rate of the LoRA experts")] = 2e-4
    projector_learning_rate: Annotated[float, Field(gt=0, description="learning rate of the projector")] = 2e-4
    head_learning_rate: Annotated[float, Field(gt=0, description="learning rate of the item head")] = 1e-4
    weight_decay: Annotated[float, Field(ge=0, description="weight decay of projector and gate, of nothing else")] = (
        1e-5
    )
    warmup_share: Annotated[float, Field(ge=0, lt=1, description="share of the steps that warm the rates up")] = 0.05
    group_by_length: Annotated[
        bool, Field(description="batches of prompts of like length, so that little of them is padding; seeded")
    ] = False


@dataclass(frozen=True, config=STRICT)
class ExportSettings:
    """Which training examples the teacher labels, and how much it says about each."""

    budget: Annotated[
        float,
        Field(gt=0, description="training examples to label: a share up to 1.0 (all of them), above 1 a whole number"),
    ] = 0.1
    select: Annotated[
        str,
        Field(
            min_length=1,
            description="which ones. random; most_recent; student_uncertain: highest entropy of the student's softmax; "
            "student_wrong: targets it ranks worst; diverse: far from each other to the student; "
            "package.module:factory: a selector of your own",
        ),
    ] = "random"
    top_n: Annotated[int, Field(ge=1, description="N, items ranked for each labelled example")] = 20
    batch_size: Annotated[
        int,
        Field(ge=1, description="prompts through the language model at once, here and wherever nothing is learned"),
    ] = 32
    ranking: Annotated[
        str,
        Field(
            min_length=1,
            description="how the catalogue is ranked, here and beside the student. item_head (item_ce): its logits; "
            "constrained (title_lm): beams along all titles, log-probabilities; grounded (title_lm): a free answer and "
            "the titles nearest to it, distances; auto: item_head for item_ce, constrained for title_lm; "
            "package.module:factory: a way of your own for title_lm",
        ),
    ] = "auto"
    beams: Annotated[
        int,
        Field(ge=1, description="constrained: unfinished titles followed at once, top_n at least; more: nearer exact"),
    ] = 32

    def __post_init__(self) -> None:
        if self.budget > 1 and self.budget != int(self.budget):
            raise ValueError(f"teacher.export.budget = {self.budget} above 1 must be a whole number of examples")


@dataclass(frozen=True, config=STRICT)
class TinySettings:
    """The small language model that `llm: tiny` builds from the dataset's titles and training histories."""

    width: Annotated[int, Field(ge=8, description="width of the LLaMA; a multiple of twice the heads")] = 64
    layers: Annotated[int, Field(ge=1, description="transformer layers")] = 2
    heads: Annotated[int, Field(ge=1, description="attention heads")] = 4
    vocabulary: Annotated[int, Field(ge=300, description="tokens of the byte-level BPE tokenizer at most")] = 1000
    context: Annotated[int, Field(ge=64, description="longest sequence in tokens")] = 256
    rows: Annotated[int, Field(ge=1, description="training histories read in an epoch, at most")] = 2000
    learning_rate: Annotated[float, Field(gt=0, description="AdamW's peak learning rate")] = 3e-3
    loop: Annotated[LoopSettings, Field(description="pretraining epochs and batches")] = LoopSettings(
        epochs=2, batch_size=32, patience=1, monitor="log_likelihood", gradient_clip=1.0
    )

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"teacher.tiny.width = {self.width} must be a multiple of 2 x tiny.heads = {2 * self.heads}"
            )
        if self.loop.monitor != "log_likelihood":
            raise ValueError("teacher.tiny.loop.monitor must be log_likelihood, the only metric of pretraining")


@dataclass(frozen=True, config=STRICT)
class TeacherSettings:
    """iLoRA: a frozen LLM with gated LoRA experts, a frozen SASRec that feeds gate and prompt, and an item head."""

    objective: Annotated[
        str,
        AfterValidator(known_objective),
        Field(
            min_length=1,
            description="item_ce: logits over the catalogue; title_lm: write the next item's title (as published); "
            "package.module:factory: an objective of your own",
        ),
    ] = "item_ce"
    llm: Annotated[
        str, Field(min_length=1, description="tiny (built from the dataset), a local folder, or a Hugging Face hub id")
    ] = TINY
    encoder: Annotated[SASRecSettings, Field(description="the teacher's own frozen SASRec")] = SASRecSettings()
    lora: Annotated[LoraSettings, Field(description="the LoRA experts")] = LoraSettings()
    gate: Annotated[GateSettings, Field(description="the gate over the experts")] = GateSettings()
    prompt: Annotated[PromptSettings, Field(description="what the LLM reads")] = PromptSettings()
    title: Annotated[TitleSettings, Field(description="title_lm: candidates, curriculum, answers")] = TitleSettings()
    head: Annotated[HeadSettings, Field(description="item_ce: the item head's start")] = HeadSettings()
    train: Annotated[TeacherTrainSettings, Field(description="steps and learning rates")] = TeacherTrainSettings()
    train_rows: Annotated[int, Field(ge=0, description="training examples the teacher learns from; 0: all")] = 5000
    train_select: Annotated[
        Select, Field(description="which ones, and which ones the head's start reads: the most recent, or random ones")
    ] = "most_recent"
    validation_rows: Annotated[int, Field(ge=0, description="validation examples it is scored on; 0: all")] = 1000
    test_rows: Annotated[int, Field(ge=0, description="test examples it is scored on; 0: all")] = 1000
    memory_probe: Annotated[
        int, Field(ge=0, description="titles that the LLM is asked to complete: has it read this catalogue? 0: none")
    ] = 100
    export: Annotated[ExportSettings, Field(description="which examples are labelled")] = ExportSettings()
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Field(description="type of the frozen LLM; auto: float32 on a CPU, as stored (half becomes bfloat16) on a GPU"),
    ] = "auto"
    quantise: Annotated[
        Quantise,
        Field(
            description="bits of the frozen LLM's linear layers, on a GPU with bitsandbytes. none: as dtype says; "
            "8bit; 4bit: NF4 with double quantisation, multiplied in bfloat16 (QLoRA)"
        ),
    ] = NOT_QUANTISED
    compile: Annotated[
        bool, Field(description="compile the LLM's forward pass (torch.compile): minutes at the start, faster steps")
    ] = False
    gradient_checkpointing: Annotated[
        bool, Field(description="compute activations again in the backward pass: less memory, more time")
    ] = False
    tiny: Annotated[TinySettings, Field(description="the LLM that llm = tiny builds")] = TinySettings()

    def __post_init__(self) -> None:
        if self.encoder.prior != "none":
            raise ValueError(
                f"teacher.encoder.prior = {self.encoder.prior!r} must be none: the teacher reads the encoder's own "
                "representation of a history"
            )
        if self.encoder.architecture != "sasrec":
            raise ValueError(
                f"teacher.encoder.architecture = {self.encoder.architecture!r} must be sasrec: "
                "the gate reads its user vector"
            )
        if self.compile and self.gradient_checkpointing:
            raise ValueError(
                "teacher.compile = True and teacher.gradient_checkpointing = True exclude each other: "
                "torch cannot compile a recomputation that opens the gate again"
            )
        if self.quantise != NOT_QUANTISED and self.dtype == "float32":
            raise ValueError(
                f"teacher.dtype = {self.dtype!r} contradicts teacher.quantise = {self.quantise!r}: "
                "a quantised model is multiplied in half precision; leave dtype at auto"
            )
        objective = objective_of(self.objective)
        objective.check_settings(self)
        if unread := self._unread():
            raise ValueError(f"{' and '.join(unread)} would not be read with teacher.objective = {self.objective}")
        if not objective.accepts_ranking(self.ranking):
            raise ValueError(
                f"teacher.export.ranking = {self.ranking!r} must be auto or {' or '.join(objective.rankings)} "
                f"with teacher.objective = {self.objective}"
            )
        if self.gate.top_k > self.lora.experts:
            raise ValueError(
                f"teacher.gate.top_k = {self.gate.top_k} must not exceed lora.experts = {self.lora.experts}"
            )
        if self.llm == TINY and self.prompt.max_tokens > self.tiny.context:
            raise ValueError(
                f"teacher.prompt.max_tokens = {self.prompt.max_tokens} must not exceed "
                f"teacher.tiny.context = {self.tiny.context}"
            )

    def _unread(self) -> list[str]:
        """Changed settings that this objective does not read: whoever changes one expects something of it."""
        read = objective_of(self.objective).own_settings
        others = [path for kind in objectives().values() for path in kind.own_settings if path not in read]
        return [changed for path in others for changed in self._changed(path)]

    def _changed(self, path: str) -> list[str]:
        """What of the settings at a dotted path is not as it is by default."""
        first, *rest = path.split(".")
        value, default = getattr(self, first), self.__dataclass_fields__[first].default
        for name in rest:
            value, default = getattr(value, name), getattr(default, name)
        if is_dataclass(value):
            return _changed(f"teacher.{path}", value, default)
        return [] if value == default else [f"teacher.{path} = {value}"]

    @property
    def ranking(self) -> str:
        """How this teacher ranks the catalogue: what ``export.ranking`` says, or means."""
        return objective_of(self.objective).rankings[0] if self.export.ranking == "auto" else self.export.ranking

    def epoch_metrics(self, ks: Sequence[int]) -> tuple[str, ...]:
        """The metrics that are known after each epoch of its training, for cut-offs K."""
        return objective_of(self.objective).metrics(ks)


def _changed(name: str, settings: Any, default: Any) -> list[str]:
    values, defaults = asdict(settings), asdict(default)
    return [f"{name}.{key} = {value!r}" for key, value in values.items() if value != defaults[key]]


#: of a trained teacher these have keys of their own, or say only where and how it runs
_NOT_OF_TRAINING = (
    "export",
    "encoder",
    "tiny",
    "llm",
    "test_rows",
    "compile",
    "gradient_checkpointing",
    "memory_probe",
)


def training_settings(settings: TeacherSettings) -> dict[str, Any]:
    """The settings that decide what a teacher learns from an encoder and a language model that are known."""
    return {name: value for name, value in deciding(settings).items() if name not in _NOT_OF_TRAINING}
