"""The few items that a training step scores in place of a large catalogue.

A step looks at columns: each row's own items (its target, the teacher's candidates, a negative of its own), and items
that all rows share, drawn from the catalogue. A shared item stands for several: its weight is 1 / π, where π is how
often it is expected among those that are drawn. So a sum over weighted columns is an unbiased estimate of the sum over
the catalogue, and equal to it when every item is drawn. An item of a row's own counts once, for itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

#: a column that is not there
NONE = -1


class SharedNegatives(NamedTuple):
    """Items ``[n]`` that were drawn, and the logarithms of their weights ``[n]`` float64."""

    items: Tensor
    log_weight: Tensor


#: each call draws anew
DrawShared = Callable[[], SharedNegatives]


def expected(counts: Tensor, n: int, power: float) -> Tensor:
    """How often each item is among n that are drawn, in proportion to (count + 1)^power, at most once: ``[V]`` float64.

    Args:
        counts: of training targets, ``[V]``.
        n: at most V; the sum of what is returned.
        power: 0 for all items alike.
    """
    wish = (counts.double() + 1) ** power
    descending, order = wish.sort(descending=True)
    # items that would be drawn more than once are drawn once, and the others share what is left
    left = descending.flip(0).cumsum(0).flip(0)
    remaining = n - torch.arange(len(wish), dtype=torch.float64, device=wish.device)
    fits = remaining * descending <= left * (1 + 1e-12)
    certain = int(fits.long().argmax())
    rates = (remaining[certain] * descending / left[certain]).clamp(max=1.0)
    rates[:certain] = 1.0
    return torch.empty_like(rates).scatter_(0, order, rates)


class Proposal:
    """Draws n items, one from each of n parts of the catalogue that are equally likely (stratified sampling).

    Items are lined up by how often they are expected, so that every draw has its share of rare and of frequent ones. An
    item at the border of two parts may be drawn from both; it then stands once, with both weights. Nothing in a draw
    costs more with a larger catalogue but a search for the n places.
    """

    def __init__(self, counts: Tensor, n: int, power: float, generator: torch.Generator) -> None:
        """``counts`` ``[V]`` of training targets; for ``n`` and ``power`` see `expected`."""
        rates = expected(counts, n, power)
        ordered, self._order = rates.sort(descending=True, stable=True)
        self._ends = ordered.cumsum(0)
        self._log_weight = -ordered.log()
        self._n, self._generator = n, generator

    def __call__(self) -> SharedNegatives:
        """A draw."""
        device = self._generator.device
        within = torch.rand(self._n, generator=self._generator, dtype=torch.float64, device=device)
        points = (torch.arange(self._n, dtype=torch.float64, device=device) + within).to(self._ends.device)
        place = torch.searchsorted(self._ends, points, right=True).clamp(max=len(self._ends) - 1)
        log_weight = self._log_weight[place]
        twice = place[1:] == place[:-1]
        log_weight[:-1] += math.log(2) * twice
        log_weight[1:] = log_weight[1:].masked_fill(twice, -math.inf)
        return SharedNegatives(self._order[place], log_weight)


@dataclass(frozen=True, eq=False)
class Columns:
    """What a step's logits ``[B, M]`` are of: each row's ``own`` items ``[B, S]``, then the ``shared`` ones ``[n]``.

    ``first`` ``[B, S]``: the column of each own item; where one is repeated, the first of its columns.
    ``log_weight`` ``[B, M]``: −∞ for a column whose item has another.
    """

    own: Tensor
    shared: Tensor
    first: Tensor
    log_weight: Tensor

    @classmethod
    def of(cls, own: Tensor, drawn: SharedNegatives, dtype: torch.dtype = torch.float32) -> Columns:
        """Columns of own items ``[B, S]`` and of shared ones; ``dtype`` of the logits.

        Args:
            own: S items of each row, its target first.
            drawn: negatives that all rows share.
            dtype: in which their weights are wanted.
        """
        rows, count = own.shape
        first = (own.unsqueeze(2) == own.unsqueeze(1)).to(torch.int8).argmax(dim=2)
        repeated = first != torch.arange(count, device=own.device)
        own_weight = torch.zeros(own.shape, dtype=dtype, device=own.device).masked_fill(repeated, -math.inf)
        # an own item that was drawn as well counts as an own one
        items, place = drawn.items.sort(stable=True)
        found = torch.searchsorted(items, own).clamp(max=len(items) - 1)
        hit = torch.where(items[found] == own, place[found], len(items))
        log_weight = drawn.log_weight.to(dtype)
        shared_weight = torch.cat([log_weight, log_weight.new_zeros(1)]).expand(rows, -1)
        shared_weight = shared_weight.scatter(1, hit, -math.inf)[:, :-1]
        return cls(own, drawn.items, first, torch.cat([own_weight, shared_weight], dim=1))

    @cached_property
    def flat(self) -> Tensor:
        """``[B · S + n]``: all own items, row by row, and the shared ones."""
        return torch.cat([self.own.flatten(), self.shared])

    @cached_property
    def items(self) -> Tensor:
        """The items of all columns, ``[B, M]``."""
        return torch.cat([self.own, self.shared.expand(len(self.own), -1)], dim=1)

    def weight_of_answers(self, left_out: Tensor | None) -> Tensor:
        """``log_weight`` for a sum over possible answers; ``left_out`` ``[V]``: -inf for items that are none."""
        return self.log_weight if left_out is None else self.log_weight + left_out[self.items]

    def logits(self, representation: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Scores ``[B, M]`` of representations ``[B, R]``.

        Args:
            representation: of each row's history.
            weight: output rows of `flat`, ``[B · S + n, R]``.
            bias: ``[B · S + n]``.
        """
        own = self.own.numel()
        rows = weight[:own].view(*self.own.shape, -1)
        scores = torch.einsum("br,bsr->bs", representation, rows) + bias[:own].view(self.own.shape)
        return torch.cat([scores, torch.addmm(bias[own:], representation, weight[own:].T)], dim=1)

    def ranked_high(self, logits: Tensor, count: int) -> Tensor:
        """The columns that are estimated to be among the ``count`` best of the catalogue, best first, and `NONE`.

        An item's estimated rank is what the better columns stand for. ``[B, min(count, M)]``.
        """
        seen = logits.masked_fill(self.log_weight == -math.inf, -math.inf)
        best = seen.topk(min(count, logits.shape[1]), dim=1)
        stands_for = self.log_weight.gather(1, best.indices).exp()
        above = stands_for.cumsum(dim=1) - stands_for
        absent = (above > count - 0.5) | (best.values == -math.inf)
        return best.indices.masked_fill(absent, NONE)
