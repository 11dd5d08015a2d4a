"""A history as a vector over the catalogue, in which an item weighs less the longer ago it was: Σ decay^distance · e.

The distance of the latest item is 0. What linear models need of all training rows at once is added up pair by pair, so
no row of V numbers is ever built.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from src.data.tensor_examples import TensorExamples
from src.student.base import ClosedForm, recent
from src.student.settings import ClosedFormSettings

# settings that several models of this kind have, each with a default of its own
Decay = Annotated[float, Field(gt=0, le=1, description="weight of an item relative to the one after it")]
SquaredPenalty = Annotated[float, Field(gt=0, description="lambda, what the weights' squares cost")]


class DecayedHistory(ClosedForm):
    """Scores are the decayed history times ``weight`` ``[V, V]``, one row of scores for each item of history.

    Args:
        settings: the model's.
        num_items: V.
        window: items of history that are read, the latest ones.
        decay: weight of an item of history relative to the one after it, in (0, 1].
        whole: whether there is a ``weight``; a subclass may keep it in factors.
    """

    weight: Tensor
    #: whether `sums` and `solve` are how it is fitted; a subclass that has them says so
    adds_up = False

    def __init__(
        self, settings: ClosedFormSettings, num_items: int, window: int, decay: float, whole: bool = True
    ) -> None:
        super().__init__(settings, num_items, window)
        self.decay = decay
        if whole:
            self.register_buffer("weight", torch.zeros(num_items, num_items))

    def forward(self, history: Tensor, length: Tensor) -> Tensor:
        """Scores ``[B, V]``."""
        seen = recent(history, length, self.window, self.padding_id)
        return times_matrix(*seen, self.decay, self.weight)

    def score_items(self, history: Tensor, length: Tensor, items: Tensor) -> Tensor:
        """As `ClosedForm.score_items`."""
        seen = recent(history, length, self.window, self.padding_id)
        return times_entries(*seen, self.decay, self.weight, items)

    def sums(self, train: TensorExamples, rows: Tensor) -> tuple[Tensor, ...]:
        """All that the weights follow from, added up over training rows: what two sets of users sum to, their union
        sums to as well, so that a fold's sums are those of everybody without those of the rows that are held out."""
        raise NotImplementedError

    def solve(self, sums: Any, train: TensorExamples, rows: Tensor) -> None:
        """The weights of `sums`, which may be changed; they were added up over ``rows``."""
        raise NotImplementedError

    def fit(self, train: TensorExamples, rows: Tensor) -> None:
        """As `ClosedForm.fit`."""
        self.solve(self.sums(train, rows), train, rows)

    def with_items(self, embedding: Tensor) -> ClosedForm:
        """As `ClosedForm.with_items`: such an item gives no score to others and gets none."""
        count = self.num_items + len(embedding)
        grown = type(self)(self.settings, count, self.window)  # type: ignore[call-arg, arg-type]  # as it is registered
        grown.weight = F.pad(self.weight, (0, len(embedding), 0, len(embedding)))
        return grown


def weights(length: Tensor, width: int, decay: float) -> Tensor:
    """decay^distance at every place of left-aligned histories, 0 behind them: ``[B]`` → ``[B, width]`` float32.

    Args:
        length: items of each history ``[B]``.
        width: places of a row.
        decay: of one step back, above 0 and at most 1.
    """
    distance = length.unsqueeze(1) - 1 - torch.arange(width, device=length.device)
    return torch.where(distance >= 0, torch.pow(decay, distance.clamp(min=0).float()), 0.0)


def times_matrix(history: Tensor, length: Tensor, decay: float, matrix: Tensor) -> Tensor:
    """The decayed history times a matrix: Σ_places decay^distance · matrix[item].

    Args:
        history: ``[B, L]`` ids, padding V.
        length: ``[B]``.
        decay: weight of an item relative to the one after it, in (0, 1].
        matrix: ``[V, M]``.

    Returns:
        ``[B, M]``.
    """
    weight = weights(length, history.shape[1], decay).to(matrix.dtype)
    items = history.clamp(max=matrix.shape[0] - 1)
    if history.shape[1] * 8 < matrix.shape[0]:
        return F.embedding_bag(items, matrix, per_sample_weights=weight, mode="sum")
    # a wide window over a small catalogue: one product is faster than many rows
    vector = weight.new_zeros(history.shape[0], matrix.shape[0]).scatter_add_(1, items, weight)
    return vector @ matrix


def times_entries(history: Tensor, length: Tensor, decay: float, matrix: Tensor, columns: Tensor) -> Tensor:
    """As `times_matrix`, at a few columns of each row alone: ``[B, n]`` → ``[B, n]``."""
    weight = weights(length, history.shape[1], decay).to(matrix.dtype)
    items = history.clamp(max=len(matrix) - 1)
    return torch.einsum("bl,bln->bn", weight, matrix[items.unsqueeze(2), columns.unsqueeze(1)])


def history_times_target(train: TensorExamples, rows: Tensor, num_items: int, window: int, decay: float) -> Tensor:
    """Σ_rows h e_targetᵀ: how often j came next after i, each time weighted by i's age: ``[V, V]`` float64.

    Args:
        train: the training examples.
        rows: row numbers of those that count.
        num_items: V.
        window: latest items of a history that count.
        decay: of one step back, above 0 and at most 1.
    """
    total = torch.zeros(num_items * num_items, dtype=torch.float64, device=train.device)
    end, earlier, target = train.end[rows], train.earlier[rows], train.target[rows]
    for distance in range(min(window, int(earlier.max()) if len(earlier) else 0)):
        held = earlier > distance
        pair = train.items[end[held] - 1 - distance].long() * num_items + target[held]
        total.index_add_(0, pair, torch.full((len(pair),), decay**distance, dtype=torch.float64, device=train.device))
    return total.view(num_items, num_items)


def history_times_history(train: TensorExamples, rows: Tensor, num_items: int, window: int, decay: float) -> Tensor:
    """Σ_rows h hᵀ: ``[V, V]`` float64, symmetric.

    Two items of an owner, at places a < b, stand together in the rows whose target is at t in (b, a + window], each
    time with weight decay^(t-1-a) · decay^(t-1-b) = decay^(b-a) · decay^(2(t-1-b)). The sum over t is a difference of
    two tails, and the tails of all places come from one pass backwards: pairs are counted once, not once a row.

    Args:
        train: the training examples.
        rows: row numbers of those that count.
        num_items: V.
        window: latest items of a history that count.
        decay: of one step back, above 0 and at most 1.
    """
    total = torch.zeros(num_items * num_items, dtype=torch.float64, device=train.device)
    first, last = _owners(train)
    if not len(first):  # no row has a history
        return total.view(num_items, num_items)
    tail = _tails(train, rows, first, last, decay**2)
    # items before the first owner's belong to nobody: these rows are a part of a longer log
    place = torch.arange(int(first[0]), len(train.items), device=train.device)
    until = torch.repeat_interleave(last, last - first)
    begun = torch.repeat_interleave(first, last - first)
    items = train.items.long()
    longest = int(train.earlier[rows].max()) if len(rows) else 0
    for gap in range(min(window, longest)):
        b = place[place - gap >= begun]
        beyond = b + (window - gap)
        cut = torch.where(beyond < until[b - first[0]], tail[beyond.clamp(max=len(tail) - 1)], 0.0) * decay ** (
            2 * (window - gap)
        )
        weight = decay**gap * (tail[b] - cut)
        pair = items[b - gap] * num_items + items[b]
        total.index_add_(0, pair, weight)
        if gap:
            total.index_add_(0, items[b] * num_items + items[b - gap], weight)
    return total.view(num_items, num_items)


def _owners(train: TensorExamples) -> tuple[Tensor, Tensor]:
    """Where each owner's items begin and end in the flat array, in its order.

    Items of owners without a row count as the previous owner's, behind all of its targets, where nothing reads them.
    """
    start = train.end - train.earlier
    first = torch.unique(start[train.earlier > 0])
    return first, torch.cat([first[1:], first.new_tensor([len(train.items)])])


def _tails(train: TensorExamples, rows: Tensor, first: Tensor, last: Tensor, factor: float) -> Tensor:
    """F[p] = Σ_{t > p} factor^(t-1-p) over the targets t of ``rows`` with the same owner: ``[T + 1]`` float64.

    A target stands at the place where its row's history ends.
    """
    size = len(train.items)
    targets = torch.zeros(size + 1, dtype=torch.float64, device=train.device)
    # counted at the last item of its history: the place behind that may be the next owner's first
    own = train.end[rows][train.earlier[rows] > 0] - 1
    targets.index_add_(0, own, torch.ones(len(own), dtype=torch.float64, device=train.device))
    tail = torch.zeros(size + 1, dtype=torch.float64, device=train.device)
    # F[p] = 1[the row whose history ends with p] + factor · F[p + 1]
    place = last - 1
    alive = place >= first
    following = torch.zeros(len(first), dtype=torch.float64, device=train.device)
    while bool(alive.any()):
        at = place[alive]
        following[alive] = targets[at] + factor * following[alive]
        tail[at] = following[alive]
        place = place - 1
        alive = place >= first
    return tail
