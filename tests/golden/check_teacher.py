"""`moelora` and `router`: the gated adapters inside PEFT's layers, the gates, the projector."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from src.teacher.backbone.gated_lora import ADAPTER, GatedAdapters, inject
from src.teacher.backbone.gates import ConvolutionalRouter, LinearGate, MLPGate
from src.teacher.backbone.projector import Projector
from src.teacher.settings import LoraSettings
from tests.golden.rounding import ProductsRoundedOnce
from tests.golden.sources import (
    BFLOAT16,
    FLOAT32,
    FLOAT32_LOSS,
    FLOAT64,
    PRECISIONS,
    Arrays,
    Sources,
    require,
    worst_error,
)

_TOLERANCE = {"f64": FLOAT64, "f32": FLOAT32}
_PARTS = ("A", "B", "gate", "x")
_PUBLISHED_DROPOUT = _PUBLISHED_NOISE = 0.1


class _OneProjection(nn.Module):
    """The smallest language model that an adapter can be put into."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.projection = nn.Linear(inputs, outputs, bias=bias is not None, dtype=weight.dtype)
        with torch.no_grad():
            self.projection.weight.copy_(weight)
            if bias is not None:
                self.projection.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, in]`` → ``[B, S, out]``."""
        projected: Tensor = self.projection(x)
        return projected


class _Adapted:
    """One projection with our gated experts, in eval mode (the published vectors have dropout off)."""

    def __init__(self, io: Arrays, weight: Tensor, bias: Tensor | None) -> None:
        torch.manual_seed(0)
        self.experts = io.whole("hp.num_moe")
        settings = LoraSettings(
            rank=io.whole("hp.r"),
            experts=self.experts,
            alpha=io.number("hp.lora_alpha"),
            dropout=_PUBLISHED_DROPOUT,
            target_modules=("projection",),
        )
        self.adapters: GatedAdapters = inject(cast(Any, _OneProjection(weight, bias)), settings)
        (self.layer,) = [module for module in self.adapters.model.modules() if isinstance(module, LoraLayer)]
        self.a, self.b = self.layer.lora_A[ADAPTER].weight, self.layer.lora_B[ADAPTER].weight
        self.adapters.model.eval()

    def load(self, io: Arrays, dtype: torch.dtype) -> None:
        """The case's experts."""
        for layer in (self.layer.lora_A[ADAPTER], self.layer.lora_B[ADAPTER]):
            layer.to(dtype)
        self.a, self.b = self.layer.lora_A[ADAPTER].weight, self.layer.lora_B[ADAPTER].weight
        with torch.no_grad():
            self.a.copy_(io["w.lora_A"])
            self.b.copy_(io["w.lora_B"])

    def __call__(self, x: Tensor, gate: Tensor) -> Tensor:
        """Gate ``[B, 1, E]`` as published; ours has no axis of one."""
        with self.adapters.scope(gate.squeeze(1)):
            return cast(Tensor, self.adapters.model(x))


def check_moelora(sources: Sources, file: Path) -> None:
    """Outputs and gradients under every gate, scaling, initialisation, the weight that a merge gives, adapters off."""
    io = sources.arrays(file)
    bias = io.get("w.bias")
    _check_initialisation(io, _Adapted(io, io["w.base_weight"], bias))
    for prefix, dtype in PRECISIONS.items():
        adapted = _Adapted(io, io["w.base_weight"].to(dtype), None if bias is None else bias.to(dtype))
        adapted.load(io, dtype)
        for name in io.names("gate."):
            _check_gate(io, adapted, name.removeprefix("gate."), prefix, dtype)
        if prefix == "f64":
            _check_without_gates(io, adapted, dtype)
    if io.names("bf16."):
        _check_bfloat16(io, bias)


def _check_initialisation(io: Arrays, adapted: _Adapted) -> None:
    """A uniform in ±1/sqrt(in), B zero; the published values are an example of it."""
    inputs = io["in.x"].shape[-1]
    bound = inputs**-0.5
    for a, b in ((adapted.a.detach(), adapted.b), (io["init.lora_A"], io["init.lora_B"])):
        require(a.shape == io["w.lora_A"].shape and b.shape == io["w.lora_B"].shape, "init: shapes")
        require(float(a.abs().max()) <= bound * (1 + 1e-6), "init: A stays within 1/sqrt(in)")
        require(0.3 * bound < float(a.abs().mean()) < 0.7 * bound, "init: A fills its range")
        require(not b.any(), "init: B is zero")


def _check_gate(io: Arrays, adapted: _Adapted, kind: str, prefix: str, dtype: torch.dtype) -> None:
    x, gate = (io[name].to(dtype).requires_grad_() for name in ("in.x", f"gate.{kind}"))
    io.expect(f"{prefix}.y.{kind}", adapted(x, gate), _TOLERANCE[prefix])
    wanted = [part for part in _PARTS if f"{prefix}.grad_{part}.{kind}" in io]
    # as the processor's kernels round, and as the formula alone rounds: only the latter is the same on every machine
    for context, tolerance in ((nullcontext(), _TOLERANCE[prefix] * 10), (ProductsRoundedOnce(), _TOLERANCE[prefix])):
        with context:
            loss = (adapted(x, gate) * io["in.cotangent"].to(dtype)).sum()
            found = dict(zip(_PARTS, torch.autograd.grad(loss, (adapted.a, adapted.b, gate, x)), strict=True))
        for part in wanted:
            io.expect(f"{prefix}.grad_{part}.{kind}", found[part], tolerance)
    require(not adapted.layer.get_base_layer().weight.requires_grad, "the base weight is frozen")


@torch.no_grad()
def _check_without_gates(io: Arrays, adapted: _Adapted, dtype: torch.dtype) -> None:
    """The published scaling is ours times E; its merge takes every gate as one; adapters off is the base layer."""
    scaling = adapted.layer.scaling[ADAPTER] * adapted.experts
    io.expect("out.scaling", torch.tensor(scaling, dtype=torch.float64), FLOAT64)
    everything = torch.eye(io["in.x"].shape[-1], dtype=dtype).unsqueeze(0)
    ones = torch.ones(1, 1, adapted.experts, dtype=dtype)
    merged = adapted(everything, ones) - adapted(torch.zeros_like(everything), ones)
    io.expect("f64.merged_weight_reference", merged.squeeze(0).T, FLOAT64)
    with adapted.adapters.model.disable_adapter():
        io.expect("f64.y.adapters_disabled", adapted.adapters.model(io["in.x"].to(dtype)), FLOAT64)


@torch.no_grad()
def _check_bfloat16(io: Arrays, bias: Tensor | None) -> None:
    """A bfloat16 base layer under float32 experts."""
    weight = io["bf16.base_weight_as_f32"].bfloat16()
    adapted = _Adapted(io, weight, None if bias is None else bias.bfloat16())
    adapted.load(io, torch.float32)
    require(torch.equal(weight.float(), io["w.base_weight"].bfloat16().float()), "bf16: base weight")
    require(torch.equal(io["bf16.x_as_f32"], io["in.x"].bfloat16().float()), "bf16: x")
    for name in io.names("bf16.y_as_f32."):
        gate = io[f"gate.{name.removeprefix('bf16.y_as_f32.')}"]
        y = adapted(io["bf16.x_as_f32"].bfloat16(), gate)
        require(y.dtype == torch.bfloat16, "bf16: the output keeps the base layer's type")
        io.expect(name, y.float(), BFLOAT16)


_ROUTER_PARTS = {"conv1": "convolution_in", "bn1": "norm_in", "conv2": "convolution_out", "bn2": "norm_out"}
_STEM = {"conv1": "stem", "bn1": "stem_norm", "gate.fc": "linear"}
_STAGE = re.compile(r"layer(\d+)\.(\d+)\.(\w+)\.(\w+)")


def _router_name(reference: str) -> str:
    """Our name of a published router's parameter or buffer."""
    if match := _STAGE.fullmatch(reference):
        stage, block, part, leaf = match.groups()
        return f"blocks.{3 * (int(stage) - 1) + int(block)}.{_ROUTER_PARTS[part]}.{leaf}"
    part, leaf = reference.rsplit(".", 1)
    return f"{_STEM[part]}.{leaf}"


def _router(weights: Arrays, dtype: torch.dtype) -> ConvolutionalRouter:
    state = {_router_name(name): value for name, value in weights.state(dtype).items()}
    router = ConvolutionalRouter(len(state["linear.bias"])).to(dtype)
    router.load_state_dict(state)
    return router


def check_router(sources: Sources, io_file: Path, weights_file: Path) -> None:
    """Gates and features in eval and in training, gradients, and the running statistics after one training pass."""
    io, weights = sources.arrays(io_file), sources.arrays(weights_file)
    for name in [name for name in io.names() if name.endswith(".user")]:
        case = name.removesuffix(".user")
        for prefix, dtype in PRECISIONS.items():
            _check_router_case(io, weights, case, prefix, dtype)


def _check_router_case(io: Arrays, weights: Arrays, case: str, prefix: str, dtype: torch.dtype) -> None:
    user, cotangent = io[f"{case}.user"].to(dtype).squeeze(1), io[f"{case}.cotangent"].to(dtype).squeeze(1)
    key, tolerance = f"{case}.{prefix}.", _TOLERANCE[prefix]
    router = _router(weights, dtype).eval()
    with torch.no_grad():
        gate = router(user)
        io.expect(f"{key}gate_eval", gate.unsqueeze(1), tolerance)
        io.expect(f"{key}features_eval", router.features(user), tolerance)
        for name in io.names(f"{key}not_reference_gate_on_raw_user"):
            io.expect(name, router.linear(user).softmax(dim=1).unsqueeze(1), tolerance)
            require(worst_error(gate.unsqueeze(1), io[name]) > 1e-3, "the gate reads features, not the user vector")
    with torch.no_grad():
        io.expect(f"{key}features_train", _router(weights, dtype).train().features(user), tolerance)
    router = _router(weights, dtype).train()
    gate = router(user)
    io.expect(f"{key}gate_train", gate.unsqueeze(1), tolerance)
    (gate * cotangent).sum().backward()
    parameters, buffers = dict(router.named_parameters()), dict(router.named_buffers())
    for name in io.names(f"{key}grad_train."):
        gradient = parameters[_router_name(name.removeprefix(f"{key}grad_train."))].grad
        require(gradient is not None, f"{name}: no gradient arrives")
        io.expect(name, cast(Tensor, gradient), FLOAT32_LOSS if prefix == "f32" else FLOAT64)
    for name in io.names(f"{key}after_train."):
        io.expect(name, buffers[_router_name(name.removeprefix(f"{key}after_train."))], tolerance)


_OUTPUT = re.compile(r"(?P<gate>[^.]+)\.(?P<x>[^.]+)\.(?P<prefix>f64|f32)\.out(?:_k(?P<k>\d+))?")


def _gate(kind: str, weights: dict[str, Tensor], top_k: int, dtype: torch.dtype) -> nn.Module:
    """Our gate of a published kind, with its weights, in eval mode."""
    ordered = list(weights.values())
    experts, width = len(ordered[-1]), ordered[0].shape[1]
    if kind.startswith("MLP"):
        noisy = kind == "MLP_noise"
        hidden = len(ordered[0])
        options: dict[str, Any] = {"activation": "relu", "bias": False, "noise": _PUBLISHED_NOISE} if noisy else {}
        gate: nn.Module = MLPGate(width, experts, hidden, **options)
        renamed = {re.sub(r"^(linear_layer|linear)1\.", "inner.", name): value for name, value in weights.items()}
        renamed = {re.sub(r"^(linear_layer|linear)2\.", "outer.", name): value for name, value in renamed.items()}
    else:
        dropout = _PUBLISHED_DROPOUT if kind == "Drop" else 0.0
        gate = LinearGate(width, experts, dropout, _PUBLISHED_NOISE if kind == "Noise" else 0.0, top_k)
        renamed = {name.replace("linear_layer.", "linear."): value for name, value in weights.items()}
    gate.to(dtype).load_state_dict(renamed)
    return gate.eval()


def _gating_outputs(io: Arrays) -> Iterator[tuple[str, re.Match[str]]]:
    for name in io.names():
        if match := _OUTPUT.fullmatch(name):
            yield name, match


@torch.no_grad()
def check_gating(sources: Sources, file: Path) -> None:
    """The published gate classes, on the user vectors of a batch with and without an axis of one."""
    io = sources.arrays(file)
    known = {"Dense", "Drop", "MLP", "Noise", "MLP_noise", "topK"}
    for name, match in _gating_outputs(io):
        kind, dtype = match["gate"], PRECISIONS[match["prefix"]]
        require(kind in known, f"{name}: no gate of ours is called {kind}")
        gate = _gate(kind, io.state(dtype, f"{kind}.w."), int(match["k"] or 0), dtype)
        user, noise_name = io[match["x"]].to(dtype), f"{kind}.{match['x']}.noise"
        rows = user.flatten(0, -2)
        inputs = [rows, io[noise_name].to(dtype).flatten(0, -2)] if noise_name in io else [rows]
        got = gate(*inputs)
        io.expect(name, got.view(*user.shape[:-1], -1), _TOLERANCE[match["prefix"]])


@torch.no_grad()
def check_projector(sources: Sources, file: Path) -> None:
    """The projector from the recommender's space into the language model's."""
    io = sources.arrays(file)
    for prefix, dtype in PRECISIONS.items():
        state = io.state(dtype, "w.mlp_proj.")
        projector = Projector(state["0.weight"].shape[1], len(state["0.bias"])).to(dtype)
        renamed = {name.replace("0.", "inner.").replace("2.", "outer."): value for name, value in state.items()}
        projector.load_state_dict(renamed)
        io.expect(f"{prefix}.y", projector(io["x"].to(dtype)), _TOLERANCE[prefix])
