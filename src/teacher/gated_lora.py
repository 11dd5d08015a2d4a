"""The gate inside PEFT's own LoRA layers.

Σ_k g_k B_k (A_k x) over experts of rank r/E is one LoRA of rank r whose r inner activations are multiplied by g, each
weight repeated r/E times. So a hook behind `lora_A` multiplies by E·g, and everything else (saving, loading, quantised
layers, every model family) stays PEFT's. With PEFT's scaling alpha/r that is alpha/(r/E)·g, the released arithmetic
(golden README §4), and a plain PEFT load of the same adapter is the uniform gate. Expert k owns rows
k·r/E..(k+1)·r/E−1 of `lora_A` and the same columns of `lora_B`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from src.core.errors import ModelError
from src.teacher.settings import AUTO, LoraSettings

_NOT_ADAPTED = ("pooler", "lm_head", "score", "classifier", "cls")
ADAPTER = "default"


class GateScope:
    """Where the adapters of one model find the gate weights of the batch that is passing through.

    ``with scope(gate_weights):`` opens it, and nothing else does: a LoRA layer that runs outside raises.
    """

    def __init__(self) -> None:
        self._gate: Tensor | None = None

    @contextmanager
    def __call__(self, gate_weights: Tensor) -> Iterator[None]:
        """Hold gate weights ``[B, E]`` for the block; scopes may be nested."""
        outer, self._gate = self._gate, gate_weights
        try:
            yield
        finally:
            self._gate = outer

    @property
    def gate_weights(self) -> Tensor | None:
        """The weights in scope, or None outside of it."""
        return self._gate

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts for a checkpointed forward pass and for its recomputation, which runs after the scope has closed."""
        return nullcontext(), nullcontext() if self._gate is None else _Reopened(self, self._gate)


class _Reopened:
    """A scope that can be entered again for each recomputation."""

    def __init__(self, scope: GateScope, gate_weights: Tensor) -> None:
        self.scope, self.gate_weights = scope, gate_weights

    def __enter__(self) -> None:
        self._open = self.scope(self.gate_weights)
        self._open.__enter__()

    def __exit__(self, *problem: Any) -> None:
        self._open.__exit__(*problem)


class _GateHook:
    """Multiplies what `lora_A` returns, ``[B, ..., r]``, by E times the gate in scope."""

    def __init__(self, scope: GateScope, experts: int) -> None:
        self.scope, self.experts = scope, experts

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], activations: Tensor) -> Tensor:
        gate = self.scope.gate_weights
        if gate is None:
            raise RuntimeError("LoRA experts ran without a gate: open `with scope(gate_weights):` around the model")
        if gate.shape != (activations.shape[0], self.experts):
            raise ValueError(
                f"gate_weights are {tuple(gate.shape)}; {activations.shape[0]} sequences met {self.experts} experts"
            )
        weights = (self.experts * gate).repeat_interleave(activations.shape[-1] // self.experts, dim=1)
        middle = [1] * (activations.dim() - 2)
        return activations * weights.view(len(gate), *middle, -1).to(activations.dtype)


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


@contextmanager
def both_names() -> Iterator[None]:
    """Newer versions of transformers warn about the names that older ones, and PEFT, know gradient checkpointing by."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
        yield


def inject(llm: PreTrainedModel, settings: LoraSettings) -> GatedAdapters:
    """Freeze a language model and give it gated LoRA experts. B starts at zero, so the model is unchanged at first.

    Raises ``ModelError`` when the layers to adapt are not there.
    """
    targets, excluded = resolve_targets(llm, settings)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type, unused-ignore] # PEFT divides it; any number will do
        lora_dropout=settings.dropout,
        target_modules=targets,
        exclude_modules=excluded or None,
    )
    with both_names():
        model = get_peft_model(llm, config, adapter_name=ADAPTER)
    return attach(model, settings.experts)


def attach(model: PeftModel, experts: int) -> GatedAdapters:
    """Gate a PEFT model that already has its LoRA adapter (a new or a loaded one)."""
    scope, layers = GateScope(), 0
    for module in model.modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
            module.lora_A[ADAPTER].register_forward_hook(_GateHook(scope, experts))
            layers += 1
    return GatedAdapters(model, scope, layers)


def checkpoint_activations(adapters: GatedAdapters) -> None:
    """Recompute activations in the backward pass, each layer under the gate of its own forward pass.

    Raises ``ModelError`` when the model's family cannot do it.
    """
    llm = adapters.model.get_base_model()
    if not llm.supports_gradient_checkpointing:
        raise ModelError.one(
            "teacher.gradient_checkpointing", True, f"{type(llm).__name__} cannot do it", "set it to false"
        )
    kwargs = {"use_reentrant": False, "context_fn": adapters.scope.checkpoint_contexts}
    with both_names():
        llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
