"""What the gate inside PEFT's LoRA layers costs: a training step beside plain LoRA, and beside expert by expert.

Three sets of adapters on the same frozen LLaMA with random weights, all of the same total rank on all seven
projections, with the same A and B:

- plain: PEFT's own LoRA layers;
- gated: this project's teacher, the same layers with a gate between A and B (`src.teacher.gated_lora`);
- expert by expert: y = x Wᵀ + s Σ_k g_k (x A_kᵀ) B_kᵀ as the formula stands (golden README §4), with every expert's
  output in memory before the gate weighs them.

First it is checked that they are the same function (uniform and one-hot gates against plain LoRA, a softmax gate's
gradients against each other). Then a step is forward, backward into adapters and gate, and AdamW. Rounds in turn, each
starting with another variant; ratios are medians over rounds. Time on a CPU is the process's own processor time, which
other load disturbs less than wall time. Peak memory: what a variant holds between steps plus the most a step adds
(GPU: the caching allocator; CPU: every allocation that torch's profiler records).

    python -m benchmarks.gated_lora_step
    python -m benchmarks.gated_lora_step --device cuda --shape llama-2-7b --dtype bfloat16 --batch 8 --length 256
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import LlamaModel

from benchmarks.machine_rate import held_bytes, machine_line, own_seconds_of, peak_growth, table
from benchmarks.random_teacher import Place, add_shape_arguments, random_llama, shape_of
from src.teacher.gated_lora import (
    ADAPTER,
    GatedAdapters,
    GateScope,
    adaptable_layers,
    both_names,
    checkpoint_activations,
    inject,
)
from src.teacher.settings import LoraSettings

PLAIN, GATED, EXPERTS = "plain PEFT LoRA", "gated (this project)", "expert by expert"
_APART = "one-hot gate against uniform gate"
_SIZE = 0.3  # of A and B: of what keeps the norm of their inputs
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
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
    def drawn(cls, options: argparse.Namespace, width: int, dtype: torch.dtype, device: torch.device) -> Batch:
        """At random."""
        inputs = torch.randn(options.batch, options.length, width, device=device).to(dtype)
        gate_logits = torch.randn(options.batch, options.experts, device=device).requires_grad_()
        return cls(inputs, gate_logits, torch.randn(options.batch, width, device=device))

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
    with both_names():
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


def difference(one: Tensor, other: Tensor) -> float:
    """‖one − other‖ / ‖other‖."""
    return float((one - other).norm() / other.norm())


@contextmanager
def only_expert(variant: Variant, expert: int, lora: LoraSettings) -> Iterator[None]:
    """Plain LoRA whose B holds E times one expert's columns and zeros: what a one-hot gate makes of all of them."""
    ups = [parameter for name, parameter in variant.model.named_parameters() if "lora_B" in name]
    before = [up.detach().clone() for up in ups]
    keep = torch.zeros(lora.experts).index_fill_(0, torch.tensor(expert), lora.experts)
    columns = keep.repeat_interleave(lora.rank // lora.experts)
    try:
        with torch.no_grad():
            for up in ups:
                up.mul_(columns.to(up))
        yield
    finally:
        with torch.no_grad():
            for up, old in zip(ups, before, strict=True):
                up.copy_(old)


@torch.no_grad()
def compare_outputs(variants: Mapping[str, Variant], batch: Batch, lora: LoraSettings) -> dict[str, float]:
    """Relative differences of the states to plain LoRA's, under uniform and one-hot gates; and between these two."""
    plain, found = variants[PLAIN], {}
    uniform, last = plain.states(batch.inputs, batch.uniform()), lora.experts - 1
    with only_expert(plain, last, lora):
        one_hot = plain.states(batch.inputs, batch.one_hot(last))
    for name in (GATED, EXPERTS):
        found[f"{name}, uniform gate"] = difference(variants[name].states(batch.inputs, batch.uniform()), uniform)
        found[f"{name}, one-hot gate"] = difference(variants[name].states(batch.inputs, batch.one_hot(last)), one_hot)
    found[_APART] = difference(one_hot, uniform)
    return found


def compare_gradients(variants: Mapping[str, Variant], batch: Batch) -> dict[str, float]:
    """Relative differences between gated and expert by expert under a softmax gate: gate's and adapters' gradients."""
    gate_gradients, own = {}, {}
    for name in (GATED, EXPERTS):
        backward(variants[name], batch)
        assert batch.gate_logits.grad is not None
        gate_gradients[name] = batch.gate_logits.grad
        own[name] = torch.cat([gradient.flatten() for gradient in variants[name].gradients()])
        forget(variants[name], batch)
    return {
        "gradient of the gate": difference(gate_gradients[GATED], gate_gradients[EXPERTS]),
        "gradient of A and B": difference(own[GATED], own[EXPERTS]),
    }


def verify(variants: Mapping[str, Variant], batch: Batch, lora: LoraSettings, dtype: torch.dtype) -> None:
    """Stop unless the three are the same function, up to the rounding of the base's type."""
    found = {**compare_outputs(variants, batch, lora), **compare_gradients(variants, batch)}
    print(table(["relative difference", ""], [(name, f"{value:.1e}") for name, value in found.items()]), "\n")
    most = _TOLERANCE[dtype]
    wrong = [name for name, value in found.items() if name != _APART and not value < most]
    if wrong or found[_APART] < 4 * most:
        raise SystemExit(f"not the same function, or gates that change nothing: {wrong or _APART}")


def backward(variant: Variant, batch: Batch) -> None:
    """Forward, and gradients of adapters and gate."""
    gate = batch.gate_logits.softmax(dim=1)
    loss = (variant.states(batch.inputs, gate)[:, -1] * batch.cotangent).mean()
    loss.backward()


def forget(variant: Variant, batch: Batch) -> None:
    """No gradients are held."""
    variant.optimiser.zero_grad(set_to_none=True)
    batch.gate_logits.grad = None


def step(variant: Variant, batch: Batch) -> None:
    """One training step."""
    backward(variant, batch)
    variant.optimiser.step()
    forget(variant, batch)


def in_turn(variants: Mapping[str, Variant], batch: Batch, rounds: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of a step of each variant in each round; a round starts one variant later than the one before."""
    device, names = batch.inputs.device, list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}

    def steps(name: str) -> None:
        for _ in range(repeats):
            step(variants[name], batch)

    for name in names:
        steps(name)
    for number in range(rounds):
        shift = number % len(names)
        for name in [*names[shift:], *names[:shift]]:
            seconds[name].append(own_seconds_of(partial(steps, name), device) / repeats)
    return seconds


def ratios(seconds: Mapping[str, list[float]], name: str) -> str:
    """Median and quartiles over rounds of a variant's time beside plain LoRA's."""
    each = [own / plain for own, plain in zip(seconds[name], seconds[PLAIN], strict=True)]
    if name == PLAIN:
        return "1"
    low, middle, high = statistics.quantiles(each, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def report(seconds: Mapping[str, list[float]], peaks: Mapping[str, int]) -> None:
    """Print the table."""
    rows = [
        (
            name,
            f"{1e3 * statistics.median(seconds[name]):.1f}",
            ratios(seconds, name),
            f"{peaks[name] / 2**20:.1f}",
            f"{peaks[name] / peaks[PLAIN]:.3f}",
        )
        for name in seconds
    ]
    print(table(["step", "ms", "of plain (quartiles)", "peak MiB", "of plain"], rows))


def arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser, shape="small")
    parser.add_argument("--batch", type=int, default=4, help="sequences")
    parser.add_argument("--length", type=int, default=128, help="tokens of each")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=3, help="steps of a variant in each round")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    return parser.parse_args()


def main() -> None:
    """Check, measure, print."""
    options = arguments()
    place = Place.of(options)
    shape, lora = shape_of(options), LoraSettings(rank=options.rank, experts=options.experts)
    llm = random_llama(shape, place)
    batch = Batch.drawn(options, shape.width, place.dtype, place.device)
    variants = build(llm, lora, options.checkpointing)
    print(f"{machine_line(place.device)}\n{shape}\n{options}\n")
    verify(variants, batch, lora, place.dtype)
    seconds = in_turn(variants, batch, options.rounds, options.repeats)
    peaks = {name: held_bytes(variant.model, variant.optimiser) for name, variant in variants.items()}
    for name, variant in variants.items():
        peaks[name] += peak_growth(partial(step, variant, batch), place.device)
    report(seconds, peaks)


if __name__ == "__main__":
    main()
