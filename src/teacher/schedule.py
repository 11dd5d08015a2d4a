"""How learning rates rise and fall."""

from __future__ import annotations

import math


def rate(step: int, steps: int, warmup_share: float) -> float:
    """The learning rates' factor at a step (from 0): linear warm-up to 1, then half a cosine to 0."""
    warmup = warmup_share * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, steps - warmup)))
