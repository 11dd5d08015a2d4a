"""Ridge regression over a catalogue of which training rows touch a part: (G + λ I)⁻¹ R, exact, without the rest.

An item that is in no history has an empty row in the Gram matrix G: its row of the solution is R's over λ. Items that
only one user has met stand beside items of that user alone, so they are eliminated user by user (a Schur complement),
and only items that users share are left for the large factorisation. Both leave the solution what it is; in a sparse
log they leave out most of its cost, which grows with the third power.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from src.data.tensor_examples import TensorExamples

#: catalogues up to this size are solved in one piece
_SMALL = 2048
#: `owners_of_items`: an item that several owners have met, and one that none has
SHARED, UNMET = -1, -2


def owners_of_items(train: TensorExamples, rows: Tensor, num_items: int) -> Tensor:
    """Who owns the histories that an item is in: the number of the one owner, or `SHARED`, or `UNMET`.

    Args:
        train: the training split.
        rows: row numbers ``[n]``; an owner is whose histories begin at the same place.
        num_items: V.

    Returns:
        ``[V]`` int64.
    """
    found = torch.full((num_items,), UNMET, dtype=torch.int64, device=train.device)
    rows = rows[train.earlier[rows] > 0]
    if not len(rows):
        return found
    begin, owner = torch.unique((train.end - train.earlier)[rows], return_inverse=True)
    until = begin.scatter_reduce(0, owner, train.end[rows], "amax")
    sizes = until - begin
    whose = torch.repeat_interleave(torch.arange(len(begin), device=train.device), sizes)
    offset = torch.repeat_interleave(begin - (sizes.cumsum(0) - sizes), sizes)
    items = train.items[offset + torch.arange(len(whose), device=train.device)].long()
    least = torch.full_like(found, len(begin)).scatter_reduce(0, items, whose, "amin")
    most = found.scatter_reduce(0, items, whose, "amax")
    return torch.where(most < 0, UNMET, torch.where(least == most, most, SHARED))


@dataclass(frozen=True)
class _Own:
    """Items of one user alone, while they are left out.

    ``items`` ``[p]``; ``beside`` ``[s]`` the places of the shared items that they stand beside; ``from_shared``
    ``[p, s]`` and ``constant`` ``[p, M]``: their rows of the solution are constant - from_shared · rows of those.
    """

    items: Tensor
    beside: Tensor
    from_shared: Tensor
    constant: Tensor


def solve_ridge(gram: Tensor, right: Tensor, l2: float, owner: Tensor) -> Tensor:
    """(``gram`` + ``l2`` · I)⁻¹ ``right``.

    Args:
        gram: ``[V, V]`` float64, symmetric; is changed.
        right: ``[V, M]`` float64.
        l2: λ > 0.
        owner: of each item, as `owners_of_items` tells it of the rows that ``gram`` was added up from.

    Returns:
        ``[V, M]`` float64.
    """
    gram.diagonal().add_(l2)
    if len(gram) <= _SMALL:
        return torch.cholesky_solve(right, torch.linalg.cholesky(gram))
    solution = right / l2
    met = owner != UNMET
    # a column of zeros has zeros for its solution
    columns = torch.nonzero((right[met] != 0).any(dim=0)).squeeze(1)
    shared = torch.nonzero(owner == SHARED).squeeze(1)
    rest, of_shared = gram[shared][:, shared], right[shared][:, columns]
    left_out = []
    alone = torch.nonzero(owner >= 0).squeeze(1)
    order = alone[owner[alone].argsort(stable=True)]
    for items in order.split(torch.unique(owner[order], return_counts=True)[1].tolist()):
        across = gram[items][:, shared]
        beside = torch.nonzero((across != 0).any(dim=0)).squeeze(1)
        across = across[:, beside]
        factor = torch.linalg.cholesky(gram[items][:, items])
        from_shared = torch.cholesky_solve(across, factor)
        constant = torch.cholesky_solve(right[items][:, columns], factor)
        rest[beside.unsqueeze(1), beside] -= across.T @ from_shared
        of_shared[beside] -= across.T @ constant
        left_out.append(_Own(items, beside, from_shared, constant))
    if len(shared):
        of_shared = torch.cholesky_solve(of_shared, torch.linalg.cholesky(rest))
    solution[shared.unsqueeze(1), columns] = of_shared
    for own in left_out:
        solution[own.items.unsqueeze(1), columns] = own.constant - own.from_shared @ of_shared[own.beside]
    return solution
