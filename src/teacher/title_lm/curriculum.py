"""From text-only to hybrid prompts: early steps rarely hold item embeddings, late ones mostly do (golden README §6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from src.core.seed import torch_generator

Kind = Literal["whole_run", "as_released", "none"]


def counters(kind: Kind, steps: int, steps_per_epoch: int) -> Tensor:
    """``[steps]`` int64: each step's counter, from 1; as released it starts anew in every epoch.

    Args:
        kind: where the counter starts anew.
        steps: of the whole training.
        steps_per_epoch: of one epoch.
    """
    step = torch.arange(steps)
    return step % steps_per_epoch + 1 if kind == "as_released" else step + 1


def is_hybrid(draw: Tensor, counter: Tensor, steps: int) -> Tensor:
    """Whether a step's prompts hold item embeddings: a uniform ``draw`` lies below counter / steps.

    Args:
        draw: from 0 to below 1.
        counter: see `counters`.
        steps: the counter at which every step is hybrid.
    """
    return draw < counter.double() / steps


@dataclass
class Curriculum:
    """Which of a run's steps are hybrid; knows the current step.

    ``hybrid`` ``[steps]`` bool is drawn at once: a resumed run goes on with the same steps.
    """

    hybrid: Tensor
    step: int = 0

    @classmethod
    def of(cls, kind: Kind, steps: int, steps_per_epoch: int, seed: int) -> Curriculum:
        """Draw which steps are hybrid: once for each batch, from a stream of its own.

        Args:
            kind: how the share grows.
            steps: of the whole run.
            steps_per_epoch: of an epoch.
            seed: the run's.
        """
        if kind == "none":
            return cls(torch.ones(steps, dtype=torch.bool))
        draws = torch.rand(steps, dtype=torch.float64, generator=torch_generator(seed, "teacher_curriculum"))
        return cls(is_hybrid(draws, counters(kind, steps, steps_per_epoch), steps))

    @property
    def now(self) -> bool:
        """Whether the current step is hybrid."""
        return bool(self.hybrid[min(self.step, len(self.hybrid) - 1)])

    def advance(self) -> None:
        """A step is done."""
        self.step += 1
