"""The gate inside PEFT's own LoRA layers.

Σ_k g_k B_k (A_k x) over experts of rank r/E is one LoRA of rank r whose r inner activations are multiplied by g, each
weight repeated r/E times. So a hook behind `lora_A` multiplies by E·g, and everything else (saving, loading, quantised
layers, every model family) stays PEFT's. With PEFT's scaling alpha/r that is alpha/(r/E)·g, the released arithmetic
(golden README §4), and a plain PEFT load of the same adapter is the uniform gate. Expert k owns rows
k·r/E..(k+1)·r/E−1 of `lora_A` and the same columns of `lora_B`.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from src.teacher.settings import AUTO, LoraSettings

_SHOWN = 5
_NOT_ADAPTED = ("pooler", "lm_head", "score", "classifier", "cls")
ADAPTER = "default"


@dataclass(frozen=True, eq=False)
class _Opened:
    """Gate weights ``[B, E]`` in scope, and by rank r what activations are multiplied by: E·g as ``[B, 1, r]``."""

    gate_weights: Tensor
    factors: Mapping[int, Tensor]


class GateScope:
    """Where the adapters of one model find the gate weights of the batch that is passing through.

    ``with scope(gate_weights):`` opens it, and nothing else does: a LoRA layer that runs outside raises. What all
    layers need is computed once, when it is opened: with some hundred layers the small steps would add up.
    """

    def __init__(self, experts: int) -> None:
        self.experts = experts
        self.ranks: set[int] = set()
        self._opened: _Opened | None = None
        #: S of the forward pass that is running, see `_WidthHook`
        self.width = 0
        #: while `settle` looks: layers by name whose activations belong to no sequence; None at all other times
        self.strange: list[str] | None = None

    @contextmanager
    def __call__(self, gate_weights: Tensor) -> Iterator[None]:
        """Hold gate weights ``[B, E]`` for the block; scopes may be nested."""
        scaled = self.experts * gate_weights
        spread = {rank: scaled.repeat_interleave(rank // self.experts, dim=-1).unsqueeze(1) for rank in self.ranks}
        with self.again(_Opened(gate_weights, spread)):
            yield

    @contextmanager
    def again(self, opened: _Opened | None, width: int = 0) -> Iterator[None]:
        """Hold for the block what was held before."""
        outer = self._opened, self.width
        self._opened, self.width = opened, width
        try:
            yield
        finally:
            self._opened, self.width = outer

    @property
    def gate_weights(self) -> Tensor | None:
        """The weights in scope, or None outside of it."""
        return None if self._opened is None else self._opened.gate_weights

    def factor(self, shape: torch.Size, turned: bool = False) -> Tensor:
        """E times each expert's weight, once for each of its r/E inner activations.

        ``[B, 1, ..., r]`` for activations ``[B, ..., r]``, ``[1, B, r]`` for those that are ``turned``, ``[S, B, r]``
        (XLNet), and ``[B·S, r]`` for those of a layer that sees the tokens of all sequences one below the other (OPT's
        feed-forward layers). Raises ``RuntimeError`` outside of a scope,
        ``ValueError`` when the weights in it are not ``[B, E]``.
        """
        if self._opened is None:
            raise RuntimeError("LoRA experts ran without a gate: open `with scope(gate_weights):` around the model")
        sequences, *middle, rank = shape
        found = tuple(self._opened.gate_weights.shape)
        if not middle and sequences == found[0] * self.width and found[1:] == (self.experts,):
            return self._opened.factors[rank].expand(-1, self.width, -1).reshape(sequences, rank)
        if turned and found == (*middle, self.experts):
            return self._opened.factors[rank].transpose(0, 1)
        if found != (sequences, self.experts):
            raise ValueError(f"gate_weights are {found}; {sequences} sequences met {self.experts} experts")
        factor = self._opened.factors[rank]
        return factor if len(middle) == 1 else factor.view(sequences, *[1] * len(middle), rank)

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts for a checkpointed forward pass and for its recomputation, which runs after the scope has closed."""
        return nullcontext(), nullcontext() if self._opened is None else _Reopened(self, self._opened, self.width)


class _Reopened:
    """A scope that can be entered again for each recomputation."""

    def __init__(self, scope: GateScope, opened: _Opened, width: int) -> None:
        self.scope, self.opened, self.width = scope, opened, width

    def __enter__(self) -> None:
        self._open = self.scope.again(self.opened, self.width)
        self._open.__enter__()

    def __exit__(self, *problem: Any) -> None:
        self._open.__exit__(*problem)


class _GateHook:
    """Multiplies what `lora_A` of the layer ``name`` returns, ``[B, ..., r]``, by E times the gate in scope."""

    def __init__(self, scope: GateScope, name: str) -> None:
        self.scope, self.name = scope, name
        #: whether the layer has tokens first and sequences second; `settle` finds out
        self.turned = False

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], activations: Tensor) -> Tensor:
        if self.scope.strange is not None and not self._settle(activations.shape, self.scope.strange):
            return activations
        return activations * self.scope.factor(activations.shape, self.turned).to(activations.dtype)

    def _settle(self, shape: torch.Size, strange: list[str]) -> bool:
        """Note how the layer lays out sequences, in a pass with more tokens than sequences; whether it does at all."""
        assert self.scope.gate_weights is not None
        sequences = len(self.scope.gate_weights)
        self.turned = len(shape) == 3 and shape[0] != sequences and shape[1] == sequences
        flat = len(shape) == 2 and shape[0] == sequences * self.scope.width
        if not (self.turned or flat or shape[0] == sequences):
            strange.append(self.name)
            return False
        return True


class _InInputsType(nn.Linear):
    """A LoRA factor that is stored and trained in float32, and multiplied in the type of what it reads."""

    def forward(self, activations: Tensor) -> Tensor:
        """``[..., inputs]`` → ``[..., outputs]``, both in the same type."""
        return F.linear(activations, self.weight.to(activations.dtype))


class _WidthHook:
    """Notes how many tokens each sequence has in the forward pass that begins.

    Only so can a layer whose rows are tokens be told from one whose rows are something else (a router's choice): rows
    that are no whole sequences in order are refused.
    """

    def __init__(self, scope: GateScope) -> None:
        self.scope = scope

    def __call__(self, llm: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = [*inputs, named.get("inputs_embeds"), named.get("input_ids")]
        self.scope.width = next((int(tensor.shape[1]) for tensor in given if isinstance(tensor, Tensor)), 0)


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
def both_names() -> Iterator[None]:
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
    with both_names():
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
        module.lora_A[ADAPTER].register_forward_hook(_GateHook(scope, name))
        scope.ranks.add(module.r[ADAPTER])
        layers += 1
    outer = model.get_base_model()
    # a causal model's inner one also runs without its head, and some heads pass it by
    for llm in {outer, getattr(outer, "base_model", outer)}:
        llm.register_forward_pre_hook(_WidthHook(scope), with_kwargs=True)
    return GatedAdapters(model, scope, layers)


@torch.no_grad()
def settle(adapters: GatedAdapters) -> GatedAdapters:
    """Find out, by one small pass, how each adapted layer lays out the sequences of a batch.

    Raises ``ModelError`` that names the layers which run over something else than sequences (DeBERTa's projections also
    over relative positions), and the others: those can be adapted alone.
    """
    model, scope = adapters.model, adapters.scope
    table, training = model.get_base_model().get_input_embeddings().weight, model.training
    model.eval()
    scope.strange = []
    try:
        with scope(torch.full((2, scope.experts), 1 / scope.experts, device=table.device)):
            model(inputs_embeds=torch.zeros(2, 3, table.shape[1], dtype=table.dtype, device=table.device))
        strange = list(dict.fromkeys(scope.strange))
    finally:
        scope.strange = None
        model.train(training)
    if strange:
        rule = f"{strange[0]} also runs over what is no sequence: its adapters cannot be gated"
        raise _not_gated(strange, rule, [(name, None) for name in strange], _lora_layers(model))
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
    with both_names():
        llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)


def require_checkpointing(llm: PreTrainedModel) -> None:
    """Raises ``ModelError`` when the model's family cannot compute its activations again."""
    if not llm.supports_gradient_checkpointing:
        raise ModelError.one(
            "teacher.gradient_checkpointing", True, f"{type(llm).__name__} cannot do it", "set it to false"
        )
