"""A running mean of a module's weights over a training (EMA)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from src.core.checkpoints import State
from src.core.errors import ArtefactError

_NOTED, _DECAYED = "/noted", "/decayed"


class WeightMean:
    """The exponential moving average of the trainable parameters; frozen ones and buffers are the module's own.

    After optimiser step ``t``, counted from 0, ``mean = d · mean + (1 - d) · weights`` with
    ``d = min(decay, (1 + t) / (10 + t))``: a short training is not ruled by the weights that it began with. Means of
    half-precision parameters are held in float32, where a small ``1 - d`` is not rounded away.

    Of a table a step moves a few rows alone. Between two moves of a row its weights stand still, and its mean comes
    nearer to them by the product of the d: that is made up for when the row is moved or looked at.
    """

    def __init__(self, module: nn.Module, decay: float, tables: Sequence[nn.Parameter] = ()) -> None:
        """``tables``: the parameters whose gradients hold a few rows (`src.core.lazy_adam`)."""
        self.decay = decay
        own = {id(table) for table in tables}
        trained = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
        dense = [(name, value.detach()) for name, value in trained if id(value) not in own]
        self._names = [name for name, _ in dense]
        self._weights = [value for _, value in dense]
        self._means = [value.to(_held_in(value.dtype), copy=True) for value in self._weights]
        self._tables = [_Table(name, value) for name, value in trained if id(value) in own]
        #: Σ log d of all steps so far
        self._decayed = 0.0

    def begin(self) -> None:
        """The gradients are there and the optimiser is about to move weights: make up for rows that stood still."""
        for table in self._tables:
            table.begin(self._decayed)

    def update(self, step: int) -> None:
        """Take in the weights after optimiser step ``step``, counted from 0; the host does not wait for the device."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = zip(self._weights, self._means, strict=True)
        torch._foreach_lerp_(self._means, [weight.to(mean.dtype) for weight, mean in pairs], 1 - decay)
        self._decayed += math.log(decay)
        for table in self._tables:
            table.take_in(decay, self._decayed)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module holds the means within this context, and its own weights again after it."""
        weights = [*self._weights, *(table.weight for table in self._tables)]
        own = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, [*self._means, *(table.now(self._decayed) for table in self._tables)])
        try:
            yield
        finally:
            torch._foreach_copy_(weights, own)

    def state(self) -> State:
        """A copy of the means, by their parameters' names."""
        found = {name: mean.clone() for name, mean in zip(self._names, self._means, strict=True)}
        for table in self._tables:
            found |= {table.name: table.mean.clone(), table.name + _NOTED: table.noted.clone()}
        if self._tables:
            found[_DECAYED] = torch.tensor(self._decayed, dtype=torch.float64)
        return found

    def load(self, state: State) -> None:
        """Put back what `state` gave.

        Raises:
            ArtefactError: the means belong to other parameters.
        """
        tables = [name for table in self._tables for name in (table.name, table.name + _NOTED)]
        if list(state) != [*self._names, *tables, *([_DECAYED] if tables else [])]:
            raise ArtefactError.one("checkpoint", list(state)[:5], "holds the mean weights of another model")
        for name, mean in zip(self._names, self._means, strict=True):
            mean.copy_(state[name])
        for table in self._tables:
            table.mean.copy_(state[table.name])
            table.noted.copy_(state[table.name + _NOTED])
            self._decayed = float(state[_DECAYED])

    def move(self, weights: Sequence[Tensor], means: Sequence[Tensor]) -> None:
        """From now on weights and means lie in these tensors, which hold what the old ones do; not for tables."""
        self._weights, self._means = list(weights), list(means)

    def held(self) -> list[Tensor]:
        """Tensors that hold the means."""
        return [*self._means, *(table.mean for table in self._tables)]


@dataclass
class _Table:
    """A table's mean, each row as it was when it was last moved; ``noted`` ``[rows]`` is Σ log d at that time."""

    name: str
    parameter: nn.Parameter

    def __post_init__(self) -> None:
        self.weight = self.parameter.detach()
        self.mean = self.weight.to(_held_in(self.weight.dtype), copy=True)
        self.noted = torch.zeros(len(self.weight), dtype=torch.float64, device=self.weight.device)
        self.rows: Tensor | None = None

    def begin(self, decayed: float) -> None:
        """Rows that are about to be moved."""
        gradient = self.parameter.grad
        if gradient is None:
            self.rows = None
            return
        if gradient.is_sparse:
            self.parameter.grad = gradient = gradient.coalesce()
            self.rows = gradient.indices()[0]
        else:
            self.rows = torch.arange(len(self.weight), device=self.weight.device)
        self.mean.index_copy_(0, self.rows, self._after(self.rows, decayed))

    def take_in(self, decay: float, decayed: float) -> None:
        """Rows that were moved in a step of this decay."""
        if self.rows is None:
            return
        moved = self.weight[self.rows].to(self.mean.dtype)
        self.mean.index_copy_(0, self.rows, self.mean[self.rows].lerp(moved, 1 - decay))
        self.noted[self.rows] = decayed

    def now(self, decayed: float) -> Tensor:
        """All rows."""
        return self._after(None, decayed)

    def _after(self, rows: Tensor | None, decayed: float) -> Tensor:
        mean, weight, noted = (value if rows is None else value[rows] for value in (self.mean, self.weight, self.noted))
        nearer = -torch.expm1(decayed - noted).to(mean.dtype)
        return mean.lerp(weight.to(mean.dtype), nearer.view(-1, *[1] * (mean.dim() - 1)))


def _held_in(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def weight_mean(module: nn.Module, decay: float, tables: Sequence[nn.Parameter] = ()) -> WeightMean | None:
    """The mean that a training with this decay keeps; None for 0, which keeps none.

    Args:
        module: whose weights are averaged.
        decay: of the old mean in a step, from 0 to below 1.
        tables: parameters with one row an item, of which a step moves a few rows.
    """
    return WeightMean(module, decay, tables) if decay > 0 else None


@contextmanager
def averaged(mean: WeightMean | None) -> Iterator[None]:
    """The module as it is evaluated: with its mean weights where there are any."""
    if mean is None:
        yield
    else:
        with mean.applied():
            yield
