"""Adam that does not touch the rows of a large table which a step has not read.

A step with sampled items reads a few thousand rows of an item table. Its gradient holds these rows alone, and so moves
them alone: their moments decay when they are read, not in between (as `torch.optim.SparseAdam` has it). All other
parameters are moved by the Adam that dense training uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class RowAdam(torch.optim.SparseAdam):
    """`torch.optim.SparseAdam`, to the same bits in less time: rows are gathered and put back by their numbers, where
    torch intersects sparse tensors.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; gradients hold each row once (see `rows_alone`)."""
        assert closure is None
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._move(table, table.grad, group)

    def _move(self, table: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(table), exp_avg_sq=torch.zeros_like(table))
        state["step"] += 1
        rows, values = gradient.indices()[0], gradient.values()
        (beta1, beta2), count = group["betas"], state["step"]
        moments = []
        for name, beta, seen in (("exp_avg", beta1, values), ("exp_avg_sq", beta2, values.square())):
            old = state[name].index_select(0, rows)
            moments.append(seen.sub(old).mul_(1 - beta).add_(old))
            state[name].index_copy_(0, rows, moments[-1])
        rate = float(group["lr"]) * math.sqrt(1 - beta2**count) / (1 - beta1**count)
        moved = moments[0].div_(moments[1].sqrt_().add_(group["eps"])).mul_(-rate)
        table.index_copy_(0, rows, moved.add_(table.index_select(0, rows)))


class LazyAdam(torch.optim.Optimizer):
    """Adam over ``dense`` parameters, lazy Adam over the ``tables``; one state."""

    def __init__(
        self, dense: Sequence[nn.Parameter], tables: Sequence[nn.Parameter], learning_rate: float, weight_decay: float
    ) -> None:
        """``weight_decay`` is Adam's L2 term; of a table it reaches the rows that a step has read."""
        super().__init__(
            [{"params": list(dense)}, {"params": list(tables)}], {"lr": learning_rate, "weight_decay": weight_decay}
        )
        #: the parameters whose gradients hold a few rows
        self.tables = tuple(tables)
        self._dense = torch.optim.Adam(list(dense), learning_rate, weight_decay=weight_decay, fused=True)
        self._lazy = RowAdam(list(tables), learning_rate)

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; a schedule sets the learning rates of ``param_groups``."""
        assert closure is None
        for own, inner in zip(self.param_groups, (self._dense, self._lazy), strict=True):
            for group in inner.param_groups:
                group["lr"] = own["lr"]
        for table in self.tables:
            if table.grad is not None:
                table.grad = self._decayed(table, rows_alone(table.grad))
        self._dense.step()
        self._lazy.step()

    def _decayed(self, table: nn.Parameter, gradient: Tensor) -> Tensor:
        decay = self.param_groups[1]["weight_decay"]
        if decay == 0:
            return gradient
        rows = gradient.indices()
        values = gradient.values() + decay * table.detach()[rows[0]]
        return torch.sparse_coo_tensor(rows, values, gradient.shape, is_coalesced=True, check_invariants=False)

    def state_dict(self) -> dict[str, Any]:
        """Both parts' states."""
        rates = [group["lr"] for group in self.param_groups]
        return {"dense": self._dense.state_dict(), "lazy": self._lazy.state_dict(), "learning_rates": rates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._dense.load_state_dict(state_dict["dense"])
        self._lazy.load_state_dict(state_dict["lazy"])
        for group, rate in zip(self.param_groups, state_dict["learning_rates"], strict=True):
            group["lr"] = rate

    def held(self) -> list[Tensor]:
        """Tensors that hold the moments."""
        states = (*self._dense.state.values(), *self._lazy.state.values())
        return [value for state in states for value in state.values() if isinstance(value, Tensor)]


def rows_alone(gradient: Tensor) -> Tensor:
    """A gradient as each row once; a dense one (of a student of one's own) as the rows that are not zero."""
    return (gradient if gradient.is_sparse else gradient.to_sparse(1)).coalesce()


def clip_gradients(parameters: Sequence[Tensor], largest: float) -> Tensor:
    """Scale gradients down to a norm, rows of tables among them; returns the norm before, detached."""
    held = [parameter for parameter in parameters if parameter.grad is not None]
    if not any(parameter.grad is not None and parameter.grad.is_sparse for parameter in held):
        return nn.utils.clip_grad_norm_(parameters, largest).detach()
    values = []
    for parameter in held:
        assert parameter.grad is not None
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
        values.append(parameter.grad.values() if parameter.grad.is_sparse else parameter.grad)
    norm = torch.stack([torch.linalg.vector_norm(value) for value in values]).norm()
    share = (largest / (norm + 1e-6)).clamp(max=1.0)
    for value in values:
        value.mul_(share)
    return norm.detach()
