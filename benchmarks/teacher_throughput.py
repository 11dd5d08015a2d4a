"""Training the teacher: tokens a second, and the share of the machine's matrix rate that they put to use.

The project's own teacher (gated LoRA, projector, head or answers, AdamW, SDPA) around a LLaMA with random weights, over
a made-up catalogue: `item_ce` over histories of about 110 tokens, or `title_lm` with candidates in the prompt. Every
pair of micro-batch and checkpointing is trained for some steps. Tokens are real ones: padding and what checkpointing
computes again count as time, not as work. Work is 4·N a token and attention (`model_flops`), the rate that of a square
matrix product of the same type, measured before and after; in the last table the higher one counts.

    python -m benchmarks.teacher_throughput                                    # a tiny shape, to see that it runs
    python -m benchmarks.teacher_throughput --objective title_lm

Options for a GPU: `benchmarks.on_a_gpu`.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.machine_rate import machine_line, matrix_rate, seconds_of, table
from benchmarks.model_flops import LlamaShape, training_flops, utilisation
from benchmarks.random_teacher import (
    Lesson,
    Place,
    add_catalogue_arguments,
    add_objective_argument,
    add_shape_arguments,
    lesson,
    shape_of,
)
from src.core.memory import is_out_of_memory
from src.core.training import train_step
from src.teacher.backbone.gated_lora import GatedAdapters, checkpoint_activations, without_checkpointing_warnings
from src.teacher.ilora_model import GatedTeacher
from src.teacher.training import build_optimiser

_WARM = 2  # steps before the clock starts


@dataclass(frozen=True)
class Trained:
    """Some steps: real tokens and places of all rows together, rows, operations, seconds, the most bytes on a GPU."""

    lengths: list[int]
    places: int
    flops: int
    seconds: float
    peak: int

    @property
    def tokens(self) -> int:
        """Real ones."""
        return sum(self.lengths)


def batches_of(costs: Tensor, size: int, steps: int, grouped: bool) -> list[Tensor]:
    """Row numbers of ``steps`` batches; ``grouped``: rows of a batch are of like length."""
    rows = torch.randperm(len(costs), generator=torch.Generator().manual_seed(0)).to(costs.device)
    if len(rows) < size * steps:
        raise SystemExit(f"{steps} steps of {size} rows need more than {len(rows)} --rows")
    chosen = rows[: size * steps]
    if grouped:
        chosen = chosen[costs[chosen].argsort(stable=True)]
    batches = list(chosen.split(size))
    return [batches[place] for place in torch.randperm(steps, generator=torch.Generator().manual_seed(1)).tolist()]


def set_checkpointing(teacher: GatedTeacher, on: bool) -> None:
    """Switch the recomputation of activations on or off."""
    if on:
        checkpoint_activations(GatedAdapters(teacher.llm, teacher.scope, layers=0))
    else:
        with without_checkpointing_warnings():
            teacher.llm.get_base_model().gradient_checkpointing_disable()


def train(taught: Lesson, shape: LlamaShape, options: argparse.Namespace, micro: int) -> Trained:
    """Warm up, then train for the measured steps."""
    teacher, objective, costs = taught.teacher, taught.objective, taught.costs
    device, size = teacher.device, micro * options.accumulate
    batches = batches_of(costs, size, options.steps + _WARM, options.grouped)
    optimiser = build_optimiser(teacher, teacher.settings.train)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def steps(part: Sequence[Tensor]) -> None:
        for rows in part:
            train_step(objective, optimiser, rows, micro, clip=1.0)

    steps(batches[:_WARM])
    measured = batches[_WARM:]
    seconds = seconds_of(lambda: steps(measured), device)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    optimiser.zero_grad(set_to_none=True)
    parts = [costs[part] for rows in measured for part in rows.split(micro)]
    lengths = torch.cat(parts).tolist()
    places = sum(int(part.max()) * len(part) for part in parts)
    return Trained(lengths, places, training_flops(shape, lengths), seconds, peak)


def attempt(taught: Lesson, shape: LlamaShape, options: argparse.Namespace, micro: int) -> Trained | None:
    """As `train`; None when the device's memory is not enough."""
    try:
        return train(taught, shape, options, micro)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        taught.teacher.zero_grad(set_to_none=True)
    # outside the handler: the exception would keep the failed step's tensors alive
    gc.collect()
    torch.cuda.empty_cache()
    return None


def sweep(taught: Lesson, options: argparse.Namespace) -> Iterator[tuple[int, str, Trained | None]]:
    """Every micro-batch with every checkpointing."""
    shape = shape_of(options)
    taught.teacher.train()
    for checkpointing in options.checkpointing:
        set_checkpointing(taught.teacher, checkpointing == "on")
        for micro in options.micro_batch:
            yield micro, checkpointing, attempt(taught, shape, options, micro)


def cells(micro: int, checkpointing: str, trained: Trained | None, rate: float) -> list[str]:
    """A row of the table."""
    if trained is None:
        return [str(micro), checkpointing, *["out of memory"] * 6]
    share = utilisation(trained.flops, trained.seconds, rate)
    return [
        str(micro),
        checkpointing,
        f"{trained.tokens / trained.seconds:,.0f}",
        f"{len(trained.lengths) / trained.seconds:,.1f}",
        f"{trained.tokens / len(trained.lengths):.0f}",
        f"{1 - trained.tokens / trained.places:.1%}",
        f"{share:.1%}",
        f"{trained.peak / 2**30:.1f}",
    ]


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser, shape="tiny")
    add_catalogue_arguments(parser)
    add_objective_argument(parser)
    parser.add_argument("--micro-batch", type=int, nargs="+", default=[8], help="rows of a forward pass, each in turn")
    parser.add_argument("--accumulate", type=int, default=1, help="forward passes of an optimiser step")
    parser.add_argument("--checkpointing", choices=["off", "on"], nargs="+", default=["off"], help="each in turn")
    parser.add_argument("--grouped", action="store_true", help="batches of rows of like length")
    parser.add_argument("--steps", type=int, default=8, help="measured steps of each")
    parser.add_argument("--rows", type=int, default=4096, help="made-up training rows")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Build, sweep, print; each line at once, so that a run that is ended leaves its figures."""
    options = arguments(words)
    place = Place.of(options)
    rate = matrix_rate(place.dtype, place.device)
    print(f"{machine_line(place.device)}\n{shape_of(options)}\n{options}")
    print(f"matrix products in {place.dtype}: {rate / 1e12:.3f} TFLOP/s\n", flush=True)
    head = ["micro-batch", "checkpointing", "tokens/s", "rows/s", "tokens a row", "padding", "utilisation", "peak GiB"]
    shown = len(head) if place.device.type == "cuda" else -1  # the last column is measured on a GPU alone
    found = []
    for one in sweep(lesson(options, place, options.rows), options):
        found.append(one)
        print(" | ".join(cells(*one, rate)[:shown]), flush=True)
    rate = max(rate, matrix_rate(place.dtype, place.device))
    print(f"\nmatrix products in {place.dtype}: {rate / 1e12:.3f} TFLOP/s\n")
    print(table(head[:shown], [cells(*one, rate)[:shown] for one in found]))


if __name__ == "__main__":
    main()
