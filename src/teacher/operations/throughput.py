"""How fast a training goes, measured over its first steps, and how long the rest will take: told once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from src.core.timing import duration
from src.core.training import Objective

#: steps that only warm up (compilation, caches, the allocator), and steps that are measured
WARM, MEASURED = 2, 10


@dataclass(eq=False)
class ThroughputMeter:
    """An objective that watches the tokens which pass through it.

    ``cost`` ``[N]``: tokens of each training row. ``steps`` and ``tokens`` are those of the whole run, ``tell`` gets
    the one sentence. Steps without a loss are those of an interrupted run, made again on paper: they cost no time.
    """

    objective: Objective
    cost: Tensor
    steps: int
    tokens: int
    tell: Callable[[str], None]
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        self._begun, self._past, self._done = False, 0, 0
        self._seen = self.cost.new_zeros(())
        self._since = (0.0, 0)

    def loss(self, rows: Tensor) -> Tensor:
        """Compute the objective's loss, and count the rows' tokens."""
        self._begun = True
        self._seen = self._seen + self.cost[rows].sum()
        return self.objective.loss(rows)

    def tokens_seen(self) -> int:
        """So far in this process; waits for the device."""
        return int(self._seen)

    def step_done(self) -> None:
        """Count a step that is done."""
        if not self._begun:
            self._past += 1
            return
        self._done += 1
        if self._done == WARM:
            self._since = self._now()
        elif self._done == WARM + MEASURED:
            self._tell()

    def _now(self) -> tuple[float, int]:
        """Seconds and tokens; to read the tokens is to wait for the device."""
        tokens = int(self._seen)
        return self.clock(), tokens

    def _tell(self) -> None:
        seconds, tokens = (now - then for now, then in zip(self._now(), self._since, strict=True))
        rate = tokens / seconds
        left = self.tokens * (1 - (self._past + self._done) / self.steps) / rate
        self.tell(
            f"{rate:,.0f} tokens a second over {MEASURED} steps: about {duration(left)} of training left, "
            "evaluation not counted"
        )
