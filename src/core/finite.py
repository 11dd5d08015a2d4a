"""Whether a training is still made of numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from src.core.errors import TrainingFailed
from src.core.fit_state import Progress

#: optimiser steps between two checks: a check waits for the device, and what is lost is at most so many steps
CHECK_EVERY = 16

_ADVICE = "lower the learning rate or the weights of the loss"


class FiniteCheck:
    """Ends a training whose loss, gradient norm or weights are not finite, before any of it is saved or evaluated.

    Losses and norms are added up on the device: a sum that has taken in NaN or an infinity never becomes finite again,
    so that one check tells of all steps before it.
    """

    def __init__(self, module: nn.Module, progress: Progress) -> None:
        self._module, self._progress = module, progress
        self._norms: Tensor | None = None

    def saw_norm(self, norm: Tensor) -> None:
        """Take in a step's gradient norm, a detached scalar."""
        self._norms = norm if self._norms is None else self._norms + norm

    def step_done(self) -> None:
        """Check after every `CHECK_EVERY` steps of an epoch.

        Raises:
            TrainingFailed: a loss or a gradient norm was not finite.
        """
        if self._progress.epoch_steps % CHECK_EVERY == 0:
            self.check()

    def check(self) -> None:
        """Check the losses of this epoch and the gradient norms since the last check.

        Raises:
            TrainingFailed: one of them was not finite.
        """
        seen = {"training loss": self._progress.loss}
        if self._norms is not None:
            seen["gradient norm"] = self._norms.to(self._progress.loss)
        self._norms = None
        for name, value in zip(seen, torch.stack(list(seen.values())).tolist(), strict=True):
            if not math.isfinite(value):
                raise TrainingFailed(f"the {name} of epoch {self._where()} is {value}: {_ADVICE}")

    def check_all(self) -> None:
        """Check the trained weights as well: the last step's gradients are seen in no loss yet.

        Raises:
            TrainingFailed: a loss, a gradient norm or a weight is not finite.
        """
        self.check()
        trained = {name: value.detach() for name, value in self._module.named_parameters() if value.requires_grad}
        filled = {name: value for name, value in trained.items() if value.numel()}
        if not filled:
            return
        largest = torch._foreach_norm(list(filled.values()), math.inf)
        finite = torch.stack([value.isfinite().to(largest[0].device) for value in largest])
        if not finite.all():
            name = list(filled)[finite.tolist().index(False)]
            raise TrainingFailed(f"a weight of {name} is not finite in epoch {self._where()}: {_ADVICE}")

    def _where(self) -> str:
        return f"{self._progress.epoch + 1}, at or before its step {self._progress.epoch_steps},"
