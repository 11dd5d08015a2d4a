"""What a training target costs with a full and with a sampled loss, by the size of the catalogue.

Random histories, items and targets, width 64, windows of 20, batches of 256, one thread; full steps (forward,
backward, optimiser, a running mean of the weights where asked for). Each catalogue and loss is measured in a process
of its own, so that its peak memory is its own: the largest resident size, less what the process held before the model
was built.

    python -m benchmarks.training_target_cost
    python -m benchmarks.training_target_cost --items 20000 --losses ce sampled --architecture sasrec --ema 0.998
    python -m benchmarks.training_target_cost --evaluate 2048
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from src.core.seed import torch_generator
from src.core.training import LoopSettings, train_step
from src.core.weight_mean import weight_mean
from src.data.tensor_examples import TensorExamples
from src.student.datamodule import StudentData
from src.student.evaluator import evaluate_model
from src.student.losses import propensity
from src.student.models import student_settings
from src.student.objectives import StudentObjective, negative_sampler, resolve_loss
from src.student.settings import EvaluationSettings, NetworkSettings
from src.student.trainer_baseline import new_student, optimiser_for, sampler_and_streams

ITEMS = (1_700, 20_000, 200_000, 1_000_000)
LOSSES = ("ce", "bce", "sampled", "gbce")
BATCH, WINDOW, ROWS = 256, 20, 20_480


@dataclass(frozen=True)
class Cost:
    """Of one training target: microseconds of the process's CPU time; and the largest number of bytes held."""

    microseconds: float
    peak: int
    #: seconds of CPU time of one evaluation; 0 where none was asked for
    evaluation: float = 0.0


def made_up(num_items: int, rows: int = ROWS) -> StudentData:
    """Random histories and targets."""
    draw = torch.Generator().manual_seed(0)
    items = torch.randint(num_items, (rows * WINDOW,), generator=draw, dtype=torch.int32)
    end = torch.arange(1, rows + 1) * WINDOW
    target = torch.randint(num_items, (rows,), generator=draw)
    ids = torch.arange(rows)
    split = TensorExamples(items, end, torch.full((rows,), WINDOW), target, ids, ids.double(), WINDOW, num_items)
    counts = torch.bincount(target, minlength=num_items)
    return StudentData(split, split, num_items, WINDOW, propensity(counts).float(), counts)


def cost(
    num_items: int, loss: str, seconds: float = 5.0, architecture: str = "transformer", ema: float = 0.0,
    evaluated: int = 0,
) -> Cost:  # fmt: skip
    """Train for about so many seconds, after a step that is not measured; then rank ``evaluated`` rows."""
    torch.set_num_threads(1)
    data = made_up(num_items)
    before = _peak()
    settings = student_settings(
        architecture, loss=loss, prior="none", width=64, window=WINDOW, loop=LoopSettings(ema=ema)
    )
    assert isinstance(settings, NetworkSettings)
    settings = resolve_loss(settings, num_items)
    student = new_student(settings, data, 0).train()
    draw = negative_sampler(data, settings.negatives, torch_generator(0, "negatives"))
    objective = StudentObjective(student, data, settings, draw, sampler_and_streams(data, settings, 0)[0])
    optimiser = optimiser_for(student, settings, student)
    mean = weight_mean(student, ema, getattr(optimiser, "tables", ()))
    order, steps, spent = torch_generator(0, "order"), 0, 0.0
    while steps < 3 or spent < seconds:
        rows = torch.randint(ROWS, (BATCH,), generator=order)
        start = time.process_time()
        train_step(objective, optimiser, rows, mean=mean, step=steps)
        spent += time.process_time() - start if steps else 0.0
        steps += 1
    took = 0.0
    if evaluated:
        judged = data.validation.of_some(torch.arange(evaluated))
        start = time.process_time()
        evaluate_model(student, judged, EvaluationSettings())
        took = time.process_time() - start
    return Cost(1e6 * spent / (steps - 1) / BATCH, _peak() - before, took)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(costs: dict[tuple[str, int], Cost], items: Sequence[int]) -> list[str]:
    """Lines of Markdown: a row a loss, microseconds and peak of each catalogue."""
    losses = list(dict.fromkeys(loss for loss, _ in costs))
    lines = [f"| loss | {' | '.join(f'V = {count:,}' for count in items)} |", "|---" * (len(items) + 1) + "|"]
    for loss in losses:
        cells = [_cell(costs[loss, count]) for count in items]
        lines.append(f"| {loss} | {' | '.join(cells)} |")
    return lines


def _cell(found: Cost) -> str:
    evaluation = f", evaluation {found.evaluation:.1f} s" if found.evaluation else ""
    return f"{found.microseconds:,.0f} µs, {found.peak / 2**30:.2f} GB{evaluation}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and each number as it is measured."""
    parser = argparse.ArgumentParser(description="cost of a training target")
    parser.add_argument("--items", type=int, nargs="+", default=list(ITEMS))
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=LOSSES)
    parser.add_argument("--architecture", default="transformer")
    parser.add_argument("--ema", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--evaluate", type=int, default=0)
    asked = parser.parse_args(arguments)
    measure = partial(
        cost, seconds=asked.seconds, architecture=asked.architecture, ema=asked.ema, evaluated=asked.evaluate
    )
    costs = {}
    for count in asked.items:
        for loss in asked.losses:
            # a process each, because a process's peak never falls
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                costs[loss, count] = pool.apply(measure, (count, loss))
            print(json.dumps({"items": count, "loss": loss, **vars(costs[loss, count])}), flush=True)
    print("\n".join(table(costs, asked.items)))


if __name__ == "__main__":
    main()
