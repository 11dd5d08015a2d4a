"""How many steps a training has, and how learning rates rise and fall over them."""

from __future__ import annotations

import math

from src.core.loop_settings import LoopSettings


def planned_steps(loop: LoopSettings, rows: int) -> int:
    """How many steps a run over so many training rows has that is not stopped early."""
    return loop.epochs * math.ceil(rows / loop.batch_size)


def rate(step: int, steps: int, warmup_share: float) -> float:
    """Factor of all learning rates: linear warm-up to 1, then half a cosine to 0.

    Args:
        step: from 0.
        steps: of the whole run.
        warmup_share: of the steps, that warm up.
    """
    warmup = warmup_share * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, steps - warmup)))


def published_rate(
    step: int, steps: int, warmup: int, peak: float, minimum: float, start: float, warming: bool = True
) -> float:
    """iLoRA's learning rate at a step (golden README §6): a line, then a cosine.

    Args:
        step: from 0.
        steps: of the whole run.
        warmup: steps that warm up, ≥ 0.
        peak: the rate after warm-up.
        minimum: the rate at which the cosine ends.
        start: the rate at which the line begins.
        warming: whether there is a warm-up. The published one exists in the first epoch alone: later steps take the
            cosine at its negative argument.
    """
    if warming and step < warmup:
        return min(peak, start + (peak - start) * step / max(warmup, 1))
    angle = math.pi * (step - warmup) / max(steps - warmup, 1)
    return minimum + (peak - minimum) * (1 + math.cos(angle)) / 2
