"""What `src.teacher.operations.resource_estimate` says before a training, beside what the training then takes.

The project's own teacher, `item_ce` or `title_lm`, around a LLaMA with random weights. Measured: what model and
optimiser hold between steps, and the most that one step adds to it (gradients among that). On a CPU dropout is made to
keep a byte for each number, as it does on a GPU, where torch's own would keep a float32. The copy of the best epoch,
which a whole training also holds, is added by arithmetic.

    python -m benchmarks.memory_estimate
    python -m benchmarks.memory_estimate --objective title_lm --checkpointing

Options for a GPU: `benchmarks.on_a_gpu`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import LlamaModel

from benchmarks.machine_rate import held_bytes, machine_line, peak_growth, table
from benchmarks.random_teacher import (
    Place,
    add_catalogue_arguments,
    add_objective_argument,
    add_shape_arguments,
    config_of,
    lesson,
    shape_of,
)
from src.core.memory import GIGABYTE
from src.core.training import train_step
from src.teacher.backbone.gated_lora import GatedAdapters, checkpoint_activations
from src.teacher.operations.model_shape import model_shape as needed_shape
from src.teacher.operations.resource_estimate import (
    ResourceEstimate,
    estimate_resources,
    weight_format,
    workload_of,
)
from src.teacher.settings import TeacherSettings
from src.teacher.training import build_optimiser


class ByteMaskDropout(nn.Dropout):
    """Dropout with the mask that a GPU keeps."""

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Dropout`."""
        dropped: Tensor = torch.native_dropout(x, self.p, self.training)[0]
        return dropped


def keep_byte_masks(model: nn.Module) -> None:
    """Replace the dropout of adapters."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name, dropout in module.lora_dropout.items():
                if isinstance(dropout, nn.Dropout):
                    module.lora_dropout[name] = ByteMaskDropout(dropout.p)


@dataclass(frozen=True)
class Found:
    """Bytes held, bytes that a step adds, trained parameters, tokens of the longest prompt; the teacher's settings."""

    held: int
    growth: int
    trained: int
    tokens: int
    settings: TeacherSettings


def measured(options: argparse.Namespace, place: Place) -> Found:
    """One step after another one, which made the optimiser's state."""
    taught = lesson(options, place, options.micro_batch)
    teacher, objective = taught.teacher, taught.objective
    if options.checkpointing:
        checkpoint_activations(GatedAdapters(teacher.llm, teacher.scope, 0))
    if place.device.type != "cuda":
        keep_byte_masks(teacher.llm)
    optimiser = build_optimiser(teacher, teacher.settings.train)
    rows = torch.arange(options.micro_batch, device=teacher.device)
    teacher.train()
    train_step(objective, optimiser, rows)
    optimiser.zero_grad(set_to_none=True)
    growth = peak_growth(lambda: train_step(objective, optimiser, rows), place.device)
    optimiser.zero_grad(set_to_none=True)
    trained = sum(p.numel() for group in teacher.parameter_groups().values() for p in group)
    return Found(held_bytes(teacher, optimiser), growth, trained, int(taught.costs.max()), teacher.settings)


def estimated(options: argparse.Namespace, place: Place, found: Found) -> ResourceEstimate:
    """What a run would print."""
    loop = replace(found.settings.train.loop, batch_size=options.micro_batch, micro_batch_size=0)
    settings = replace(
        found.settings,
        gradient_checkpointing=options.checkpointing,
        train=replace(found.settings.train, loop=loop),
    )
    # without weights: only sizes matter
    with torch.device("meta"):
        llm = LlamaModel(config_of(shape_of(options)))
    shape = needed_shape(llm, settings.lora)
    return estimate_resources(
        shape, settings, weight_format(settings, place.dtype), workload_of(settings, shape, options.items, found.tokens)
    )


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser, shape="small")
    add_catalogue_arguments(parser)
    add_objective_argument(parser)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, estimate, print."""
    options = arguments(words)
    place = Place.of(options)
    print(f"{machine_line(place.device)}\n{shape_of(options)}\n{options}\n", flush=True)
    found = measured(options, place)
    needs, best = estimated(options, place, found), 4 * found.trained
    rows = [
        ("frozen, trained, optimiser, best epoch", found.held + best, needs.weights + 16 * found.trained),
        ("a step: gradients and activations", found.growth, needs.activations + 4 * found.trained),
        ("together", found.held + best + found.growth, needs.memory),
    ]
    print(f"{options.micro_batch} prompts of {found.tokens} tokens\n")
    head = ["GB", "measured", "estimated", "estimated / measured"]
    print(table(head, [(n, f"{m / GIGABYTE:.3f}", f"{e / GIGABYTE:.3f}", f"{e / m:.2f}") for n, m, e in rows]))


if __name__ == "__main__":
    main()
