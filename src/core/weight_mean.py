"""A running mean of a module's weights over a training (EMA)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from src.core.checkpoints import State
from src.core.errors import ArtefactError


class WeightMean:
    """The exponential moving average of the trainable parameters; frozen ones and buffers are the module's own.

    After optimiser step ``t``, counted from 0, ``mean = d · mean + (1 - d) · weights`` with
    ``d = min(decay, (1 + t) / (10 + t))``: a short training is not ruled by the weights that it began with. Means of
    half-precision parameters are held in float32, where a small ``1 - d`` is not rounded away.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        trained = [(name, value.detach()) for name, value in module.named_parameters() if value.requires_grad]
        self._names = [name for name, _ in trained]
        self._weights = [value for _, value in trained]
        self._means = [value.to(_held_in(value.dtype), copy=True) for value in self._weights]

    def update(self, step: int) -> None:
        """Take in the weights after optimiser step ``step``, counted from 0; the host does not wait for the device."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = zip(self._weights, self._means, strict=True)
        torch._foreach_lerp_(self._means, [weight.to(mean.dtype) for weight, mean in pairs], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module holds the means within this context, and its own weights again after it."""
        own = [weight.clone() for weight in self._weights]
        torch._foreach_copy_(self._weights, self._means)
        try:
            yield
        finally:
            torch._foreach_copy_(self._weights, own)

    def state(self) -> State:
        """A copy of the means, by their parameters' names."""
        return {name: mean.clone() for name, mean in zip(self._names, self._means, strict=True)}

    def load(self, state: State) -> None:
        """Put back what `state` gave.

        Raises:
            ArtefactError: the means belong to other parameters.
        """
        if list(state) != self._names:
            raise ArtefactError.one("checkpoint", list(state)[:5], "holds the mean weights of another model")
        for mean, saved in zip(self._means, state.values(), strict=True):
            mean.copy_(saved)


def _held_in(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def weight_mean(module: nn.Module, decay: float) -> WeightMean | None:
    """The mean that a training with this decay keeps; None for 0, which keeps none."""
    return WeightMean(module, decay) if decay > 0 else None


@contextmanager
def averaged(mean: WeightMean | None) -> Iterator[None]:
    """The module as it is evaluated: with its mean weights where there are any."""
    if mean is None:
        yield
    else:
        with mean.applied():
            yield
