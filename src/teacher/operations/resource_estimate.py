"""What a training of the teacher will need, estimated before it starts: parameters, memory, disk, tokens.

Arithmetic over the shape of a language model, which may be one without weights (on torch's meta device). Bytes are
those that training itself holds; libraries and the allocator come on top (roughly 1 GB on a GPU).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from src.teacher.backbone.gated_lora import adaptable_layers, resolve_targets
from src.teacher.backbone.gates import build_gate
from src.teacher.backbone.llm import state_width, table_shape
from src.teacher.backbone.projector import Projector
from src.teacher.objective import objective_of
from src.teacher.settings import NOT_QUANTISED, LoraSettings, TeacherSettings

Form = Literal["float32", "bfloat16", "8bit", "4bit"]
GIGABYTE = 10**9

#: of one weight in a linear map: 8 bits have a float32 scale a row (left out: below a thousandth); 4 bits have, for
#: each block of 64 weights, a scale of one byte, and for each 256 of these a float32 (double quantisation)
BYTES_OF_A_WEIGHT: dict[Form, Fraction] = {
    "float32": Fraction(4),
    "bfloat16": Fraction(2),
    "8bit": Fraction(1),
    "4bit": Fraction(1, 2) + Fraction(1, 64) + Fraction(4, 64 * 256),
}
#: of a trained parameter, all float32: itself, its gradient, AdamW's two moments, and its value in the best epoch
_TRAINED_BYTES = 5 * 4
#: of a trained parameter in a checkpoint: itself, two moments, the best value
_CHECKPOINT_BYTES = 4 * 4
#: of a logit: float32, its log-softmax, its gradient
_LOGIT_BYTES = 3 * 4
_NORMS = 2  # of a layer; each keeps its input in float32


@dataclass(frozen=True)
class LinearMap:
    """A linear layer: ``place`` names the module that it is part of, ``adapted`` whether it has LoRA experts."""

    place: str
    inputs: int
    outputs: int
    adapted: bool

    @property
    def weights(self) -> int:
        """Without a bias."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Shape:
    """A language model, as far as memory goes.

    ``maps`` are its linear layers, poolers and heads left out; ``other`` counts all parameters beside their weights and
    the language-model head; ``vocabulary`` is that of its token embeddings. ``head``: parameters of the head that lies
    in its files; 0 where it is the embeddings. ``cache``: keys and values that decoding holds for a token.
    ``embedding``: width of the token embeddings where that is not ``width``, which states have; 0: the same.
    """

    layers: int
    width: int
    vocabulary: int
    maps: tuple[LinearMap, ...]
    other: int
    head: int = 0
    cache: int = 0
    embedding: int = 0

    @property
    def parameters(self) -> int:
        """Without the head."""
        return self.other + sum(one.weights for one in self.maps)

    def adapter_parameters(self, rank: int) -> int:
        """Of LoRA experts of this total rank."""
        return sum(rank * (one.inputs + one.outputs) for one in self.maps if one.adapted)


@dataclass(frozen=True)
class Load:
    """What is trained on at once, and over all.

    ``rows`` prompts of at most ``tokens`` tokens a forward pass; ``logits`` of one of them; ``small`` trained
    parameters beside the experts (gate, projector, head).
    """

    rows: int
    tokens: int
    logits: int
    small: int


@dataclass(frozen=True)
class Needs:
    """Parameters, and bytes by what holds them. ``disk``: the model's files, a teacher's folder and its checkpoint.
    ``asking``: keys and values while titles are written, at most; they come beside the weights, not beside the rest.
    """

    trained: int
    frozen: int
    weights: int
    optimiser: int
    activations: int
    asking: int
    disk: int

    @property
    def memory(self) -> int:
        """Bytes on the device."""
        return self.weights + self.optimiser + self.activations

    def memory_words(self) -> str:
        """The bytes in one sentence, in GB (10⁹ bytes)."""
        return (
            f"{gigabytes(self.memory)} of memory ({gigabytes(self.weights)} frozen weights, "
            f"{gigabytes(self.optimiser)} trained parameters and optimiser, {gigabytes(self.activations)} activations)"
        )

    def asking_words(self, prompts: int) -> str:
        """What a teacher that writes takes while it is asked."""
        return f"{gigabytes(self.weights + self.asking)} at most while it answers {prompts} prompts at once"


def gigabytes(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / GIGABYTE:.1f} GB" if count >= GIGABYTE / 10 else f"{count / 10**6:.1f} MB"


def shape_of(llm: PreTrainedModel, lora: LoraSettings) -> Shape:
    """Look at a language model without its head and before adapters are injected.

    Raises ``ModelError`` as `resolve_targets` does.
    """
    targets, _ = resolve_targets(llm, lora)
    adaptable = set(adaptable_layers(llm)[0])
    maps = []
    for name, module in llm.named_modules():
        if name in adaptable:
            inputs, outputs = _sizes(module)
            adapted = any(name == target or name.endswith(f".{target}") for target in targets)
            maps.append(LinearMap(name.rpartition(".")[0], inputs, outputs, adapted))
    # a quantised weight packs several numbers into one: it is counted by its layer's sizes
    own = {id(llm.get_submodule(name).weight) for name in adaptable}
    other = sum(parameter.numel() for parameter in llm.parameters() if id(parameter) not in own)
    config, (vocabulary, embedding) = llm.config, table_shape(llm)
    width = state_width(llm)
    head = 0 if getattr(config, "tie_word_embeddings", False) else vocabulary * width
    cache = _cache(config)
    return Shape(config.num_hidden_layers, width, vocabulary, tuple(maps), other, head, cache, embedding)


def _cache(config: Any) -> int:
    """Two vectors a layer, each as wide as the heads of keys and values together."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * width)


def _sizes(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a layer that `adaptable_layers` names."""
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    return int(module.in_features), int(module.out_features)


def form_of(settings: TeacherSettings, dtype: torch.dtype) -> Form:
    """How the frozen weights lie in memory; ``dtype`` is that of a model that is not quantised."""
    if settings.quantise != NOT_QUANTISED:
        return settings.quantise
    return "float32" if dtype == torch.float32 else "bfloat16"


def weight_bytes(shape: Shape, form: Form, with_head: bool) -> int:
    """Of the frozen model; what is no linear map of a layer stays in half precision when the maps are quantised."""
    rest = 4 if form == "float32" else 2
    other = shape.other + (shape.head if with_head else 0)
    return math.ceil(BYTES_OF_A_WEIGHT[form] * sum(one.weights for one in shape.maps)) + rest * other


def activation_bytes(shape: Shape, tokens: int, lora: LoraSettings, form: Form, checkpointing: bool) -> int:
    """What a forward pass over ``tokens`` tokens keeps for the backward pass of a frozen model with adapters.

    Kept are, in the model's type, each linear map's output (attention, products and activation functions want their
    inputs) and one more of the widest a layer; in float32 each norm's input; in the adapters' type each adapted map's
    input and twice its inner activations; with dropout a mask of a byte. With checkpointing only each layer's input is
    kept, and one layer's share of all that at a time, with half as much again for the gradients that pass through it.
    """
    each = 4 if form == "float32" else 2
    widest = max(one.outputs for one in shape.maps)
    outputs = sum(one.outputs for one in shape.maps) + shape.layers * widest
    adapted = [one for one in shape.maps if one.adapted]
    masks = sum(one.inputs for one in adapted) if lora.dropout else 0
    own = each if lora.compute == "base" else 4
    inputs = _adapted_inputs(adapted, copied=own != each or bool(masks))
    norms, inner = _NORMS * shape.layers * shape.width, 2 * lora.rank * len(adapted)
    of_a_token = each * outputs + 4 * norms + own * (inputs + inner) + masks
    if checkpointing:
        of_a_token = each * shape.layers * shape.width + math.ceil(Fraction(3, 2) * of_a_token / shape.layers)
    return tokens * of_a_token


def _adapted_inputs(adapted: Sequence[LinearMap], copied: bool) -> int:
    """Numbers that adapters keep of their inputs: a copy each, or one that the maps of a module share."""
    if copied:
        return sum(one.inputs for one in adapted)
    return sum(inputs for _, inputs in {(one.place, one.inputs) for one in adapted})


def small_parameters(settings: TeacherSettings, width: int, num_items: int, embedding: int = 0) -> int:
    """Trained parameters beside the experts, for a language model of this width and V items.

    ``embedding``: width of its token embeddings; 0: the same.
    """
    with torch.device("meta"):
        parts: list[nn.Module] = [
            Projector(settings.encoder.width, embedding or width),
            build_gate(settings.gate, settings.encoder.width, settings.lora.experts),
        ]
        parts += objective_of(settings.objective).small_parts(width, num_items)
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def load_of(settings: TeacherSettings, shape: Shape, num_items: int, tokens: int) -> Load:
    """A micro-batch of prompts of at most ``tokens`` tokens; an answer has logits for as many as a title may have."""
    loop = settings.train.loop
    rows = min(loop.micro_batch_size or loop.batch_size, loop.batch_size)
    logits = objective_of(settings.objective).logits(settings, shape, num_items)
    return Load(rows, tokens, logits, small_parameters(settings, shape.width, num_items, shape.embedding))


def asking_bytes(shape: Shape, settings: TeacherSettings, form: Form, tokens: int) -> int:
    """Keys and values of a batch of prompts of ``tokens`` tokens, and of all titles that are written behind each."""
    export = settings.export
    written = settings.prompt.title_tokens * (export.beams if settings.ranking == "constrained" else 1)
    return (4 if form == "float32" else 2) * shape.cache * export.batch_size * (tokens + written)


def needs_of(shape: Shape, settings: TeacherSettings, form: Form, load: Load) -> Needs:
    """The estimate for a training under these settings."""
    trained = shape.adapter_parameters(settings.lora.rank) + load.small
    tokens = load.rows * load.tokens
    activations = activation_bytes(shape, tokens, settings.lora, form, settings.gradient_checkpointing)
    stored = weight_bytes(shape, "float32" if form == "float32" else "bfloat16", with_head=True)
    writes = objective_of(settings.objective).writes
    return Needs(
        trained=trained,
        frozen=shape.parameters + (shape.head if writes else 0),
        weights=weight_bytes(shape, form, with_head=writes),
        optimiser=_TRAINED_BYTES * trained,
        activations=activations + _LOGIT_BYTES * load.rows * load.logits,
        asking=asking_bytes(shape, settings, form, load.tokens) if writes else 0,
        disk=stored + (4 + _CHECKPOINT_BYTES) * trained,
    )


def announcement(needs: Needs, load: Load, rows: int, tokens: int, settings: TeacherSettings) -> str:
    """What a run says before it starts, with ``tokens`` in the prompts of an epoch's ``rows``."""
    loop = settings.train.loop
    steps = loop.epochs * math.ceil(rows / loop.batch_size)
    again = ", activations computed twice" if settings.gradient_checkpointing else ""
    asking = f", {needs.asking_words(settings.export.batch_size)}" if needs.asking else ""
    return (
        f"it trains {needs.trained / 10**6:,.1f} M parameters beside {needs.frozen / 10**6:,.1f} M frozen ones; "
        f"estimated need: {needs.memory_words()} at {load.rows} prompts of up to {load.tokens} tokens a forward "
        f"pass{again}{asking}, {gigabytes(needs.disk)} of disk; {rows:,} prompts an epoch with {tokens:,} tokens, "
        f"{steps:,} steps at most"
    )
