"""What the gate inside PEFT's LoRA layers costs: a training step beside plain LoRA, and beside expert by expert.

Three sets of adapters on the same frozen LLaMA with random weights, all of the same total rank on all seven
projections, with the same A and B:

- plain: PEFT's own LoRA layers;
- gated: this project's teacher, the same layers with a gate between A and B (`src.teacher.backbone.gated_lora`);
- expert by expert: y = x Wᵀ + s Σ_k g_k (x A_kᵀ) B_kᵀ as the formula stands (golden README §4), with every expert's
  output in memory before the gate weighs them.

First it is checked, in float32 on a small and shallow copy of the shape, that they are the same function (uniform and
one-hot gates against plain LoRA, a softmax gate's gradients against each other). Of the measured model the differences
are only printed: in bfloat16 rounding grows from layer to layer, to 0.2 at the depth of Llama-2-7B.

Then a step is forward, backward into adapters and gate, and AdamW. Gated first, then expert by expert, each in rounds
in turn with plain LoRA, which starts every other round; ratios are medians over rounds. A variant that does not fit
into the memory says so, and what was measured before it stands. Time on a CPU is the process's own processor time,
which other load disturbs less than wall time. Peak memory: what a variant holds between steps plus the most a step adds
(GPU: the caching allocator; CPU: every allocation that torch's profiler records).

    python -m benchmarks.gated_lora_step

Options for a GPU: `benchmarks.on_a_gpu`.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.lora_variants import EXPERTS, GATED, PLAIN, Batch, Variant, build
from benchmarks.machine_rate import (
    held_bytes,
    machine_line,
    median_interval,
    own_seconds_of,
    peak_growth,
    table,
)
from benchmarks.model_flops import LlamaShape
from benchmarks.random_teacher import Place, add_shape_arguments, random_llama, shape_of
from src.core.memory import is_out_of_memory
from src.teacher.settings import LoraSettings

_APART = "one-hot gate against uniform gate"
_TOLERANCE = 1e-4  # of float32 over two layers
_SMALL = LlamaShape(width=256, layers=2, heads=4, key_value_heads=4, feed_forward=688, vocabulary=1000)


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


def small_copy(shape: LlamaShape) -> LlamaShape:
    """Two layers, no wider than 256, with the shape's ratio of heads that share their keys and values."""
    if shape.width <= _SMALL.width:
        return replace(shape, layers=min(shape.layers, 2))
    return replace(_SMALL, key_value_heads=max(1, _SMALL.heads * shape.key_value_heads // shape.heads))


def verify(shape: LlamaShape, lora: LoraSettings, device: torch.device, checkpointing: bool) -> None:
    """Stop unless the three are the same function of a small copy of the shape in float32."""
    place, small = Place(device, torch.float32), small_copy(shape)
    variants = build(random_llama(small, place), lora, checkpointing)
    batch = Batch.drawn(4, 32, lora.experts, small.width, place)
    found = {**compare_outputs(variants, batch, lora), **compare_gradients(variants, batch)}
    show("relative difference, float32, 2 layers", found)
    wrong = [name for name, value in found.items() if name != _APART and not value < _TOLERANCE]
    if wrong or found[_APART] < 4 * _TOLERANCE:
        raise SystemExit(f"not the same function, or gates that change nothing: {wrong or _APART}")


def show(title: str, found: Mapping[str, float]) -> None:
    """Differences as a table."""
    print(table([title, ""], [(name, f"{value:.1e}") for name, value in found.items()]), "\n", flush=True)


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


def free(device: torch.device) -> None:
    """Give back what a failed step left."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Measured:
    """Seconds of a step in each round, and peak bytes, of plain LoRA and of another variant in turn with it."""

    plain: list[float]
    own: list[float]
    plain_peak: int
    own_peak: int


def in_turn(plain: Variant, own: Variant, batch: Batch, rounds: int, repeats: int) -> Measured:
    """Both variants in each round, the other one first in every second round; a step of each before the clock."""
    device = batch.inputs.device
    seconds: tuple[list[float], list[float]] = ([], [])

    def steps(variant: Variant, count: int) -> None:
        for _ in range(count):
            step(variant, batch)

    pair = (plain, own)
    for variant in pair:
        steps(variant, repeats)
    for number in range(rounds):
        for place in (0, 1) if number % 2 == 0 else (1, 0):
            seconds[place].append(own_seconds_of(partial(steps, pair[place], repeats), device) / repeats)
    peaks = [
        held_bytes(variant.model, variant.optimiser) + peak_growth(partial(step, variant, batch), device)
        for variant in pair
    ]
    return Measured(*seconds, *peaks)


def measured(variants: Mapping[str, Variant], name: str, batch: Batch, options: argparse.Namespace) -> Measured | None:
    """As `in_turn`; None when the device's memory is not enough."""
    try:
        return in_turn(variants[PLAIN], variants[name], batch, options.rounds, options.repeats)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        for variant in (variants[PLAIN], variants[name]):
            forget(variant, batch)
    # outside the handler: the exception would keep the failed step's tensors alive
    free(batch.inputs.device)
    return None


def row(name: str, seconds: Sequence[float], plain: Sequence[float], peak: int, plain_peak: int) -> tuple[str, ...]:
    """A line of the table: times and peak memory beside plain LoRA's."""
    each = [one / other for one, other in zip(seconds, plain, strict=True)]
    (low, high), quartiles = median_interval(each), statistics.quantiles(each, n=4) if len(each) > 1 else [*each * 3]
    return (
        name,
        f"{1e3 * statistics.median(seconds):.1f}",
        f"{statistics.median(each):.3f} ({low:.3f} to {high:.3f})",
        f"{quartiles[0]:.3f} to {quartiles[2]:.3f}",
        f"{peak / 2**20:.1f}",
        f"{peak / plain_peak:.3f}",
    )


def report(name: str, found: Measured | None) -> None:
    """Print a variant beside plain LoRA, at once: what follows may take long."""
    head = ["step", "ms", "of plain: median (its 95 % interval)", "quartiles", "peak MiB", "of plain"]
    if found is None:
        rows = [(name, *["out of memory"] * 5)]
    else:
        rows = [
            row(PLAIN, found.plain, found.plain, found.plain_peak, found.plain_peak),
            row(name, found.own, found.plain, found.own_peak, found.plain_peak),
        ]
    print(table(head, rows), "\n", flush=True)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser, shape="small")
    parser.add_argument("--batch", type=int, default=4, help="sequences")
    parser.add_argument("--length", type=int, default=128, help="tokens of each")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=3, help="steps of a variant in each round")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    return parser.parse_args(words)


def show_differences(variants: Mapping[str, Variant], batch: Batch, lora: LoraSettings) -> None:
    """Of the measured model's outputs, for information; none where they do not fit into the memory."""
    title = f"relative difference, {batch.inputs.dtype}, measured model"
    try:
        return show(title, compare_outputs(variants, batch, lora))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    free(batch.inputs.device)
    print(f"{title}: out of memory\n", flush=True)


def main(words: Sequence[str] | None = None) -> None:
    """Check, measure, print."""
    options = arguments(words)
    place, shape = Place.of(options), shape_of(options)
    lora = LoraSettings(rank=options.rank, experts=options.experts)
    print(f"{machine_line(place.device)}\n{shape}\n{options}\n", flush=True)
    verify(shape, lora, place.device, options.checkpointing)
    free(place.device)
    batch = Batch.drawn(options.batch, options.length, options.experts, shape.width, place)
    variants = build(random_llama(shape, place), lora, options.checkpointing)
    show_differences(variants, batch, lora)
    for name in (GATED, EXPERTS):
        report(name, measured(variants, name, batch, options))


if __name__ == "__main__":
    main()
