"""What a training of the teacher will need, estimated before it starts: parameters, memory, disk, tokens.

Arithmetic over the shape of a language model, which may be one without weights (on torch's meta device). Bytes are
those that training itself holds; libraries and the allocator come on top (roughly 1 GB on a GPU).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import nn

from src.core.memory import gigabytes
from src.teacher.backbone.gates import build_gate
from src.teacher.backbone.projector import Projector
from src.teacher.objective import objective_of
from src.teacher.operations.model_shape import LinearMap, ModelShape
from src.teacher.schedule import planned_steps
from src.teacher.settings import NOT_QUANTISED, LoraSettings, TeacherSettings

WeightFormat = Literal["float32", "bfloat16", "8bit", "4bit"]

#: of one weight in a linear map: 8 bits have a float32 scale a row (left out: below a thousandth); 4 bits have, for
#: each block of 64 weights, a scale of one byte, and for each 256 of these a float32 (double quantisation)
BYTES_OF_A_WEIGHT: dict[WeightFormat, Fraction] = {
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
class Workload:
    """What is trained on at once, and over all.

    ``rows`` prompts of at most ``tokens`` tokens a forward pass; ``logits`` of one of them; ``small`` trained
    parameters beside the experts (gate, projector, head).
    """

    rows: int
    tokens: int
    logits: int
    small: int


@dataclass(frozen=True)
class ResourceEstimate:
    """Parameters, and bytes by what holds them. ``disk``: the model's files, a teacher's folder and its checkpoint.
    ``kv_cache``: keys and values while titles are written, at most; they come beside the weights, not beside the rest.
    """

    trained: int
    frozen: int
    weights: int
    optimiser: int
    activations: int
    kv_cache: int
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

    def kv_cache_words(self, prompts: int) -> str:
        """What a teacher that generates takes while it is asked."""
        return f"{gigabytes(self.weights + self.kv_cache)} at most while it answers {prompts} prompts at once"


def weight_format(settings: TeacherSettings, dtype: torch.dtype) -> WeightFormat:
    """How the frozen weights lie in memory; ``dtype`` is that of a model that is not quantised."""
    if settings.quantise != NOT_QUANTISED:
        return settings.quantise
    return "float32" if dtype == torch.float32 else "bfloat16"


def weight_bytes(shape: ModelShape, form: WeightFormat, with_head: bool) -> int:
    """Bytes of the frozen model.

    What is no linear map of a layer stays in half precision when the maps are quantised.

    Args:
        shape: the model's.
        form: how its linear maps are stored.
        with_head: whether the language-model head is kept.
    """
    rest = 4 if form == "float32" else 2
    other = shape.other + (shape.head if with_head else 0)
    return math.ceil(BYTES_OF_A_WEIGHT[form] * sum(one.weights for one in shape.maps)) + rest * other


def activation_bytes(
    shape: ModelShape, tokens: int, lora: LoraSettings, form: WeightFormat, checkpointing: bool
) -> int:
    """Bytes that a forward pass keeps for the backward pass of a frozen model with adapters.

    Kept are, in the model's type, each linear map's output (attention, products and activation functions want their
    inputs) and one more of the widest a layer; in float32 each norm's input; in the adapters' type each adapted map's
    input and twice its inner activations; with dropout a mask of a byte. With checkpointing only each layer's input is
    kept, and one layer's share of all that at a time, with half as much again for the gradients that pass through it.

    Args:
        shape: the model's.
        tokens: in the pass.
        lora: rank, dropout and type of the adapters.
        form: how the frozen weights are stored.
        checkpointing: whether activations are computed again.
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
    """Count the trained parameters beside the experts.

    Args:
        settings: the teacher's.
        width: D, of the language model's states.
        num_items: V.
        embedding: width of its token embeddings; 0: the same.
    """
    with torch.device("meta"):
        parts: list[nn.Module] = [
            Projector(settings.encoder.width, embedding or width),
            build_gate(settings.gate, settings.encoder.width, settings.lora.experts),
        ]
        parts += objective_of(settings.objective).small_parts(width, num_items)
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def workload_of(settings: TeacherSettings, shape: ModelShape, num_items: int, tokens: int) -> Workload:
    """Say what is trained on at once.

    Args:
        settings: the teacher's.
        shape: the language model's.
        num_items: V.
        tokens: of the longest prompt.
    """
    loop = settings.train.loop
    rows = min(loop.micro_batch_size or loop.batch_size, loop.batch_size)
    logits = objective_of(settings.objective).logits(settings, shape, num_items)
    return Workload(rows, tokens, logits, small_parameters(settings, shape.width, num_items, shape.embedding))


def kv_cache_bytes(shape: ModelShape, settings: TeacherSettings, form: WeightFormat, tokens: int) -> int:
    """Bytes of keys and values while titles are written: of a batch of prompts and of all that stands behind each.

    Args:
        shape: the language model's.
        settings: the teacher's.
        form: how the frozen weights are stored.
        tokens: of a prompt.
    """
    export = settings.export
    written = objective_of(settings.objective).decoded_tokens(settings)
    return (4 if form == "float32" else 2) * shape.cache * export.batch_size * (tokens + written)


def estimate_resources(
    shape: ModelShape, settings: TeacherSettings, form: WeightFormat, workload: Workload
) -> ResourceEstimate:
    """Estimate what a training takes.

    Args:
        shape: the language model's.
        settings: the teacher's.
        form: how the frozen weights are stored.
        workload: what is trained on at once.
    """
    trained = shape.adapter_parameters(settings.lora.rank) + workload.small
    tokens = workload.rows * workload.tokens
    activations = activation_bytes(shape, tokens, settings.lora, form, settings.gradient_checkpointing)
    stored = weight_bytes(shape, "float32" if form == "float32" else "bfloat16", with_head=True)
    generates = objective_of(settings.objective).generates
    return ResourceEstimate(
        trained=trained,
        frozen=shape.parameters + (shape.head if generates else 0),
        weights=weight_bytes(shape, form, with_head=generates),
        optimiser=_TRAINED_BYTES * trained,
        activations=activations + _LOGIT_BYTES * workload.rows * workload.logits,
        kv_cache=kv_cache_bytes(shape, settings, form, workload.tokens) if generates else 0,
        disk=stored + (4 + _CHECKPOINT_BYTES) * trained,
    )


def need_in_short(estimate: ResourceEstimate, rows: int, settings: TeacherSettings) -> str:
    """What a person wants to know before it starts; `estimate_sentence` has all of it.

    Args:
        estimate: of this training.
        rows: prompts of an epoch.
        settings: the teacher's.
    """
    trained, all_of_them = estimate.trained / 10**6, (estimate.trained + estimate.frozen) / 10**6
    steps = planned_steps(settings.train.loop, rows)
    return (
        f"{trained:,.1f} M of {all_of_them:,.1f} M parameters are trained in {steps:,} steps at most, "
        f"with about {gigabytes(estimate.memory)} of memory"
    )


def estimate_sentence(
    estimate: ResourceEstimate, workload: Workload, rows: int, tokens: int, settings: TeacherSettings
) -> str:
    """Word what a run's log says before it starts.

    Args:
        estimate: of this training.
        workload: what is trained on at once.
        rows: prompts of an epoch.
        tokens: in all of these.
        settings: the teacher's.
    """
    again = ", activations computed twice" if settings.gradient_checkpointing else ""
    kv_cache = f", {estimate.kv_cache_words(settings.export.batch_size)}" if estimate.kv_cache else ""
    return (
        f"it trains {estimate.trained / 10**6:,.1f} M parameters beside {estimate.frozen / 10**6:,.1f} M frozen ones; "
        f"estimated need: {estimate.memory_words()} at {workload.rows} prompts of up to {workload.tokens} tokens a "
        f"forward pass{again}{kv_cache}, {gigabytes(estimate.disk)} of disk; {rows:,} prompts an epoch "
        f"with {tokens:,} tokens, {planned_steps(settings.train.loop, rows):,} steps at most"
    )
