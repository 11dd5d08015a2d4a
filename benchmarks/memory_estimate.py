"""The memory that `src.teacher.needs` announces before a training, beside what the training then takes.

The project's `item_ce` teacher around a LLaMA with random weights; prompts of one length. Measured: what model and
optimiser hold between steps, and the most that one step adds to it (gradients among that). The copy of the best
epoch, which a whole training also holds, is added by arithmetic.

    python -m benchmarks.memory_estimate
    python -m benchmarks.memory_estimate --device cuda --shape llama-2-7b --dtype bfloat16 --micro-batch 8
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from benchmarks.machine_rate import held_bytes, machine_line, peak_growth, table
from benchmarks.random_teacher import (
    Place,
    add_catalogue_arguments,
    add_shape_arguments,
    catalogue_of,
    item_teacher,
    random_llama,
    shape_of,
)
from src.core.training import LoopSettings, train_step
from src.student.datamodule import TensorExamples
from src.teacher.gated_lora import GatedAdapters, checkpoint_activations
from src.teacher.needs import GIGABYTE, Needs, form_of, load_of, needs_of
from src.teacher.needs import shape_of as needed_shape
from src.teacher.training import ItemObjective, build_optimiser


def measured(options: argparse.Namespace, place: Place) -> tuple[int, int, int, int]:
    """Bytes held, bytes that a step adds, trained parameters, tokens of the longest prompt."""
    teacher = item_teacher(options, place)
    if options.checkpointing:
        checkpoint_activations(GatedAdapters(teacher.llm, teacher.scope, 0))
    examples = TensorExamples.of(catalogue_of(options).examples(options.micro_batch), teacher.device)
    objective, optimiser = ItemObjective(teacher, examples), build_optimiser(teacher, teacher.settings.train)
    rows = torch.arange(options.micro_batch, device=teacher.device)
    teacher.train()
    train_step(objective, optimiser, rows)
    optimiser.zero_grad(set_to_none=True)
    growth = peak_growth(lambda: train_step(objective, optimiser, rows), place.device)
    optimiser.zero_grad(set_to_none=True)
    trained = sum(p.numel() for group in teacher.parameter_groups().values() for p in group)
    longest = int(teacher.cost(examples.history, examples.length).max())
    return held_bytes(teacher, optimiser), growth, trained, longest


def estimated(options: argparse.Namespace, place: Place, tokens: int) -> Needs:
    """What a run would print."""
    teacher = item_teacher(options, place)
    loop = LoopSettings(epochs=1, batch_size=options.micro_batch, patience=1)
    settings = replace(
        teacher.settings,
        gradient_checkpointing=options.checkpointing,
        train=replace(teacher.settings.train, loop=loop),
    )
    shape = needed_shape(random_llama(shape_of(options), place), settings.lora)
    return needs_of(
        shape, settings, form_of(settings, place.dtype), load_of(settings, shape, teacher.num_items, tokens)
    )


def main() -> None:
    """Measure, estimate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser, shape="small")
    add_catalogue_arguments(parser)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    options = parser.parse_args()
    place = Place.of(options)
    held, growth, trained, tokens = measured(options, place)
    needs = estimated(options, place, tokens)
    best = 4 * trained
    rows = [
        ("frozen, trained, optimiser, best epoch", held + best, needs.weights + 16 * trained),
        ("a step: gradients and activations", growth, needs.activations + 4 * trained),
        ("together", held + best + growth, needs.memory),
    ]
    print(f"{machine_line(place.device)}\n{shape_of(options)}\n{options.micro_batch} prompts of {tokens} tokens\n")
    head = ["GB", "measured", "estimated", "estimated / measured"]
    print(table(head, [(n, f"{m / GIGABYTE:.3f}", f"{e / GIGABYTE:.3f}", f"{e / m:.2f}") for n, m, e in rows]))


if __name__ == "__main__":
    main()
