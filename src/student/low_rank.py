"""Ridge regression for catalogues of which no [V, V] matrix fits: in the directions along which histories differ most.

W = Q (Qᵀ G Q + λ I)⁻¹ Qᵀ R, where G = Σ h hᵀ, R = Σ h eᵀ, and Q holds the leading eigenvectors of G, found by
subspace iteration. Nothing larger than [V, directions] is kept, and every pass over the rows costs their items times
the number of directions. With as many directions as G has it is the ridge itself, because R lies in G's range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from src.core.data_utils import ordered_batches
from src.core.seed import torch_generator
from src.data.tensor_examples import TensorExamples
from src.student.decayed_history import times_matrix, weights

_BATCH = 4096
_PASSES = 4
#: directions beyond those that are asked for: they let the iteration settle
_SPARE = 8


def low_rank_ridge(
    train: TensorExamples, rows: Tensor, num_items: int, window: int, decay: float, l2: float, rank: int
) -> tuple[Tensor, Tensor]:
    """Two factors of the weights.

    Args:
        train: the training split.
        rows: row numbers ``[n]`` of it.
        num_items: V.
        window: items of history that are read.
        decay: weight of an item relative to the one after it.
        l2: λ.
        rank: how many directions are kept.

    Returns:
        ``left`` ``[V, rank]`` and ``right`` ``[rank, V]``, float32; scores are h · left · right.
    """
    size = min(num_items, rank + _SPARE)
    generator = torch_generator(0, "low_rank", device=train.device)
    q = torch.randn(num_items, size, generator=generator, device=train.device)
    q = torch.linalg.qr(q)[0]
    for _ in range(_PASSES):
        moved = torch.zeros_like(q)
        for at in ordered_batches(len(rows), _BATCH):
            history, length = _read(train, rows[at.to(rows.device)], window)
            shown = times_matrix(history, length, decay, q)
            weight = weights(length, history.shape[1], decay)
            held = history < num_items
            spread = (weight.unsqueeze(2) * shown.unsqueeze(1))[held]
            moved.index_add_(0, history[held], spread)
        q = torch.linalg.qr(moved + 1e-6 * q)[0]  # rows without a history leave nothing to turn towards
    gram = torch.zeros(size, size, dtype=torch.float64, device=train.device)
    cross = torch.zeros(num_items, size, dtype=torch.float64, device=train.device)
    for at in ordered_batches(len(rows), _BATCH):
        chosen = rows[at.to(rows.device)]
        shown = times_matrix(*_read(train, chosen, window), decay, q).double()
        gram += shown.T @ shown
        cross.index_add_(0, train.target[chosen], shown)
    values, turn = torch.linalg.eigh(gram)
    kept = turn[:, -rank:]
    right = (cross @ kept).T / (values[-rank:] + l2).unsqueeze(1)
    return (q.double() @ kept).float(), right.float()


def _read(train: TensorExamples, rows: Tensor, window: int) -> tuple[Tensor, Tensor]:
    longest = int(train.earlier[rows].max()) if len(rows) else 0
    return train.read(rows, max(1, min(window, longest)))
