"""Plain LoRA, gated LoRA and LoRA expert by expert over the same frozen weights, to be compared step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import LlamaModel

from benchmarks.random_teacher import Place
from src.teacher.backbone.gate_scope import GateScope
from src.teacher.backbone.gated_lora import (
    ADAPTER,
    GatedAdapters,
    adaptable_layers,
    checkpoint_activations,
    inject,
    without_checkpointing_warnings,
)
from src.teacher.settings import LoraSettings

PLAIN, GATED, EXPERTS = "plain PEFT LoRA", "gated (this project)", "expert by expert"
_SIZE = 0.3  # of A and B: of what keeps the norm of their inputs
Scope = Callable[[Tensor], AbstractContextManager[None]]


class ExpertByExpert(nn.Module):
    """A LoRA layer that computes the output of each of E experts, all of them ``[E, B, S, out]``, and then mixes."""

    def __init__(self, layer: LoraLayer, scope: GateScope, experts: int) -> None:
        super().__init__()
        self.layer, self.scope, self.experts = layer, scope, experts
        # alpha / (r / E), where PEFT has alpha / r
        self.scaling = experts * layer.scaling[ADAPTER]

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, in]`` → ``[B, S, out]`` under the gate weights ``[B, E]`` in scope."""
        gate = self.scope.gate_weights
        if gate is None:
            raise RuntimeError("experts ran without a gate")
        down, up = self.layer.lora_A[ADAPTER].weight, self.layer.lora_B[ADAPTER].weight
        inputs = self.layer.lora_dropout[ADAPTER](x.to(down.dtype))
        pairs = zip(down.chunk(self.experts, dim=0), up.chunk(self.experts, dim=1), strict=True)
        outputs = torch.stack([F.linear(F.linear(inputs, a), b) for a, b in pairs])
        update = (gate.t()[:, :, None, None].to(outputs.dtype) * outputs).sum(dim=0) * self.scaling
        base: Tensor = self.layer.base_layer(x)
        return (base + update).to(base.dtype)


@dataclass(frozen=True, eq=False)
class Variant:
    """A model with adapters, what opens its gate (nothing, for plain LoRA), its optimiser."""

    model: PeftModel
    scope: Scope
    optimiser: torch.optim.Optimizer

    def states(self, inputs: Tensor, gate: Tensor) -> Tensor:
        """``[B, S, D]`` under gate weights ``[B, E]`` → the last layer's states, float32."""
        with self.scope(gate):
            states: Tensor = self.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        return states.float()

    def gradients(self) -> list[Tensor]:
        """Of the adapters, in the order of their names without what wraps the layers."""
        named = {bare(name): p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        return [named[name] for name in sorted(named)]


@dataclass(frozen=True, eq=False)
class Batch:
    """``inputs`` ``[B, S, D]``; ``gate_logits`` ``[B, E]``, trained; ``cotangent`` ``[B, D]``: what the loss wants."""

    inputs: Tensor
    gate_logits: Tensor
    cotangent: Tensor

    @classmethod
    def drawn(cls, rows: int, length: int, experts: int, width: int, place: Place) -> Batch:
        """At random: B rows of S tokens."""
        inputs = torch.randn(rows, length, width, device=place.device).to(place.dtype)
        gate_logits = torch.randn(rows, experts, device=place.device).requires_grad_()
        return cls(inputs, gate_logits, torch.randn(rows, width, device=place.device))

    def one_hot(self, expert: int) -> Tensor:
        """``[B, E]``: this expert alone."""
        return torch.zeros_like(self.gate_logits).index_fill_(1, torch.tensor(expert, device=self.inputs.device), 1.0)

    def uniform(self) -> Tensor:
        """``[B, E]``: plain LoRA."""
        return torch.full_like(self.gate_logits, 1 / self.gate_logits.shape[1])


def bare(name: str) -> str:
    """A parameter's name without `ExpertByExpert` around its layer."""
    return name.replace(".layer.lora_", ".lora_")


def without_gate(gate: Tensor) -> AbstractContextManager[None]:
    """What plain LoRA opens."""
    return nullcontext()


def same_weights(llm: LlamaModel) -> LlamaModel:
    """Another model over the very tensors of this one."""
    return copy.deepcopy(llm, {id(tensor): tensor for tensor in [*llm.parameters(), *llm.buffers()]})


def plain_model(llm: LlamaModel, lora: LoraSettings, checkpointing: bool) -> PeftModel:
    """PEFT's LoRA on the layers that the project adapts."""
    names = sorted({name.rsplit(".", 1)[-1] for name in adaptable_layers(llm)[0]})
    with without_checkpointing_warnings():
        model = get_peft_model(llm, LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=names))
        if checkpointing:
            llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def gated_model(llm: LlamaModel, lora: LoraSettings, checkpointing: bool) -> GatedAdapters:
    """The project's own."""
    adapters = inject(llm, lora)
    if checkpointing:
        checkpoint_activations(adapters)
    return adapters


def expert_model(llm: LlamaModel, lora: LoraSettings, checkpointing: bool) -> GatedAdapters:
    """The project's own, with each LoRA layer computed expert by expert; that never calls the hooked modules."""
    adapters = gated_model(llm, lora, checkpointing)
    layers = [(name, module) for name, module in adapters.model.named_modules() if isinstance(module, LoraLayer)]
    for name, layer in layers:
        parent, _, last = name.rpartition(".")
        setattr(adapters.model.get_submodule(parent), last, ExpertByExpert(layer, adapters.scope, lora.experts))
    return adapters


def build(llm: LlamaModel, lora: LoraSettings, checkpointing: bool) -> dict[str, Variant]:
    """All three over the same frozen weights, with the same A and B; B is not zero."""
    plain = plain_model(same_weights(llm), lora, checkpointing)
    gated = gated_model(same_weights(llm), lora, checkpointing)
    apart = expert_model(same_weights(llm), lora, checkpointing)
    scopes: dict[str, tuple[PeftModel, Scope]] = {
        PLAIN: (plain, without_gate),
        GATED: (gated.model, gated.scope),
        EXPERTS: (apart.model, apart.scope),
    }
    trained = {name: p for name, p in plain.named_parameters() if p.requires_grad}
    # large enough to tell gates apart, small enough for rounding not to grow from layer to layer
    start = {name: torch.randn_like(p) * _SIZE / p.shape[1] ** 0.5 for name, p in trained.items()}
    found = {}
    for name, (model, scope) in scopes.items():
        trained = {bare(key): p for key, p in model.named_parameters() if p.requires_grad}
        if trained.keys() != start.keys():
            raise AssertionError(f"{name} adapts other layers than {PLAIN}")
        with torch.no_grad():
            for key, parameter in trained.items():
                parameter.copy_(start[key])
        optimiser = torch.optim.AdamW(trained.values(), 1e-6, fused=True)
        found[name] = Variant(model.train(), scope, optimiser)
    return found
