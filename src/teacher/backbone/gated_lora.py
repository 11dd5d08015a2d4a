"""The gate inside PEFT's own LoRA layers.

Σ_k g_k B_k (A_k x) over experts of rank r/E is one LoRA of rank r whose r inner activations are multiplied by g, each
weight repeated r/E times. So a hook behind `lora_A` multiplies by E·g, and everything else (saving, loading, quantised
layers, every model family) stays PEFT's. With PEFT's scaling alpha/r that is alpha/(r/E)·g, the released arithmetic
(golden README §4), and a plain PEFT load of the same adapter is the uniform gate. Expert k owns rows
k·r/E..(k+1)·r/E−1 of `lora_A` and the same columns of `lora_B`.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from src.core.errors import ModelError, ProblemsFound
from src.teacher.backbone.gate_scope import GateHook, GateScope, WidthHook
from src.teacher.settings import AUTO, LoraSettings

_SHOWN = 5
_NOT_ADAPTED = ("pooler", "lm_head", "score", "classifier", "cls")
ADAPTER = "default"


class _InInputsType(nn.Linear):
    """A LoRA factor that is stored and trained in float32, and multiplied in the type of what it reads."""

    def forward(self, activations: Tensor) -> Tensor:
        """``[..., inputs]`` → ``[..., outputs]``, both in the same type."""
        return F.linear(activations, self.weight.to(activations.dtype))


@dataclass(frozen=True, eq=False)
class GatedAdapters:
    """A PEFT model, the scope through which its adapters are gated, and how many layers are adapted."""

    model: PeftModel
    scope: GateScope
    layers: int


def adaptable_layers(llm: nn.Module) -> tuple[list[str], list[str]]:
    """Linear layers of a language model by full name: those to adapt, and poolers and heads, which are not."""
    linear = [name for name, module in llm.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    excluded = [name for name in linear if any(part in _NOT_ADAPTED for part in name.split("."))]
    return [name for name in linear if name not in set(excluded)], excluded


def resolve_targets(llm: nn.Module, settings: LoraSettings) -> tuple[list[str], list[str]]:
    """PEFT's `target_modules` (last name parts) and `exclude_modules` for a model.

    Raises ``ModelError`` when a named layer is not in the model, or no layer can be adapted.
    """
    adaptable, excluded = adaptable_layers(llm)
    names = sorted({name.rsplit(".", 1)[-1] for name in adaptable})
    wanted = names if settings.target_modules == (AUTO,) else list(settings.target_modules)
    unknown = [name for name in wanted if not any(own == name or own.endswith(f".{name}") for own in adaptable)]
    if unknown or not wanted:
        raise ModelError.one(
            "teacher.lora.target_modules",
            unknown or list(settings.target_modules),
            "no such linear layer in the language model",
            f"choose from {', '.join(names) or 'another model'}",
        )
    return wanted, excluded


def layers_of(llm: nn.Module, targets: Collection[str]) -> list[str]:
    """Full names of the linear layers that PEFT adapts for these `target_modules`, as `resolve_targets` gives them."""
    return [
        name
        for name in adaptable_layers(llm)[0]
        if any(name == target or name.endswith(f".{target}") for target in targets)
    ]


@contextmanager
def without_checkpointing_warnings() -> Iterator[None]:
    """Newer versions of transformers warn about the names that older ones, and PEFT, know gradient checkpointing by."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
        yield


def inject(llm: PreTrainedModel, settings: LoraSettings) -> GatedAdapters:
    """Freeze a language model and give it gated LoRA experts. B starts at zero, so the model is unchanged at first.

    A model on torch's meta device will do, to find out whether it can be done. Raises ``ModelError`` when the layers to
    adapt are not there, or PEFT adapts others than `layers_of` promises (it knows mixtures of experts that keep several
    maps in one tensor, and turns to that tensor).
    """
    targets, excluded = resolve_targets(llm, settings)
    promised = layers_of(llm, targets)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type, unused-ignore] # PEFT divides it; any number will do
        lora_dropout=settings.dropout,
        target_modules=targets,
        exclude_modules=excluded or None,
        # GPT-2 keeps its linear maps the other way round
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in llm.modules()),
    )
    with without_checkpointing_warnings():
        model = get_peft_model(llm, config, adapter_name=ADAPTER)
    adapters = attach(model, settings)
    _require_promised(promised, [name for name, _ in _lora_layers(model)])
    return adapters


def attach(model: PeftModel, settings: LoraSettings) -> GatedAdapters:
    """Gate a PEFT model that already has its LoRA adapter (a new or a loaded one).

    Raises ``ModelError`` when an adapter stands around something else than a linear map: its `lora_A` is a weight that
    nobody calls, and no hook would gate it.
    """
    scope, layers = GateScope(settings.experts), 0
    _require_linear(model)
    for name, module in _lora_layers(model):
        if settings.compute == "base":
            _compute_as_the_base(module)
        module.lora_A[ADAPTER].register_forward_hook(GateHook(scope, name))
        scope.ranks.add(module.r[ADAPTER])
        layers += 1
    outer = model.get_base_model()
    # a causal model's inner one also runs without its head, and some heads pass it by
    for llm in {outer, getattr(outer, "base_model", outer)}:
        llm.register_forward_pre_hook(WidthHook(scope), with_kwargs=True)
    return GatedAdapters(model, scope, layers)


@torch.no_grad()
def probe_layouts(adapters: GatedAdapters) -> GatedAdapters:
    """Find out, by one small pass, how each adapted layer lays out the sequences of a batch.

    Raises ``ModelError`` that names the layers which run over something else than sequences (DeBERTa's projections also
    over relative positions), and the others: those can be adapted alone.
    """
    model, scope = adapters.model, adapters.scope
    table, training = model.get_base_model().get_input_embeddings().weight, model.training
    model.eval()
    scope.ungated = []
    try:
        with scope(torch.full((2, scope.experts), 1 / scope.experts, device=table.device)):
            model(inputs_embeds=torch.zeros(2, 3, table.shape[1], dtype=table.dtype, device=table.device))
        ungated = list(dict.fromkeys(scope.ungated))
    finally:
        scope.ungated = None
        model.train(training)
    if ungated:
        rule = f"{ungated[0]} also runs over what is no sequence: its adapters cannot be gated"
        raise _not_gated(ungated, rule, [(name, None) for name in ungated], _lora_layers(model))
    return adapters


def _compute_as_the_base(layer: LoraLayer) -> None:
    layer.cast_input_dtype_enabled = False
    for factor in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]):
        # the same parameters under the same names: saving and loading stay PEFT's
        factor.__class__ = _InInputsType


def _lora_layers(model: PeftModel) -> list[tuple[str, LoraLayer]]:
    """Adapted layers by their full names in the model without adapters."""
    found = model.get_base_model().named_modules()
    return [(name, module) for name, module in found if isinstance(module, LoraLayer)]


def _require_linear(model: PeftModel) -> None:
    layers = _lora_layers(model)
    strange = [(name, m) for name, m in layers if not isinstance(m.get_base_layer(), (nn.Linear, Conv1D))]
    if strange:
        name, module = strange[0]
        around = type(module.get_base_layer()).__name__
        raise _not_gated([name], f"{name} ({around}) is no linear map: its adapters cannot be gated", strange, layers)


def _require_promised(promised: Collection[str], adapted: Collection[str]) -> None:
    lost = sorted(set(promised) - set(adapted))
    if lost or set(adapted) - set(promised):
        names = lost or sorted(set(adapted) - set(promised))
        rule = f"PEFT adapts other layers of this model than its linear maps ({names[0]} differs)"
        raise _not_gated(names, rule, [(name, None) for name in names], [(name, None) for name in adapted])


def _not_gated(
    names: Collection[str], rule: str, wrong: Collection[tuple[str, Any]], adapted: Collection[tuple[str, Any]]
) -> ProblemsFound:
    """The error that names the layers which can be adapted instead."""
    bad = {name.rsplit(".", 1)[-1] for name, _ in wrong} | {"base_layer"}
    sound = list(dict.fromkeys(last for name, _ in adapted if (last := name.rsplit(".", 1)[-1]) not in bad))
    step = f"name layers that can, such as [{','.join(sound)}]" if sound else "use another model"
    return ModelError.one("teacher.lora.target_modules", sorted(names)[:_SHOWN], rule, step)


def compile_forward(adapters: GatedAdapters, backend: str = "inductor") -> None:
    """Compile the forward pass of training and labelling in place: module, names and state stay what they are.

    Generation reaches past the PEFT model and is not compiled: its caches grow with every token.
    """
    # lengths of prompts differ from batch to batch: one graph for all of them
    adapters.model.compile(backend=backend, dynamic=True)


def checkpoint_activations(adapters: GatedAdapters) -> None:
    """Recompute activations in the backward pass, each layer under the gate of its own forward pass.

    Raises ``ModelError`` when the model's family cannot do it.
    """
    llm = adapters.model.get_base_model()
    require_checkpointing(llm)
    kwargs = {"use_reentrant": False, "context_fn": adapters.scope.checkpoint_contexts}
    with without_checkpointing_warnings():
        llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)


def require_checkpointing(llm: PreTrainedModel) -> None:
    """Raises ``ModelError`` when the model's family cannot compute its activations again."""
    if not llm.supports_gradient_checkpointing:
        raise ModelError.one(
            "teacher.gradient_checkpointing", True, f"{type(llm).__name__} cannot do it", "set it to false"
        )
