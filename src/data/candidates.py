"""Items that are wrong answers: negatives for training, candidate lists for a prompt.

Both are uniform over the items that are neither in the history nor the target (DLLM2Rec's sampler; iLoRA's candidates).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.core.errors import DataError

# Far above any catalogue, far below 2**63: the remainder of a division by V is uniform to within V / 2**62.
_RANDOM_RANGE = 2**62


def forbidden_offsets(history: Tensor, target: Tensor, num_items: int) -> tuple[Tensor, Tensor]:
    """How far the r-th allowed item lies above r: the part of a draw that depends on the row alone.

    ``history`` ``[B, L]`` padded with V, ``target`` ``[B]`` → ``offsets`` ``[B, L + 1]`` ascending and ``allowed``
    ``[B]``, the number of items that may be drawn. With the distinct forbidden ids f_0 < f_1 < …, offset j is
    f_j − j: the number of allowed items below f_j. So the r-th allowed item is r + #{j : f_j − j ≤ r}.
    """
    forbidden = torch.cat([history, target.unsqueeze(1)], dim=1).sort(dim=1).values
    width = forbidden.shape[1]
    repeated = torch.zeros_like(forbidden, dtype=torch.bool)
    repeated[:, 1:] = forbidden[:, 1:] == forbidden[:, :-1]
    unused = repeated | (forbidden >= num_items)
    # an unused place must stay above every rank, also after its own position is subtracted
    distinct = forbidden.masked_fill(unused, num_items + width).sort(dim=1).values
    offsets = distinct - torch.arange(width, device=history.device)
    return offsets, num_items - width + unused.sum(dim=1)


def draw_from_offsets(offsets: Tensor, allowed: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """``[B, n]`` item ids, independent and uniform over each row's allowed items (see `forbidden_offsets`).

    Every row must have an allowed item (`require_negatives`). The draw happens on the generator's device, so a CPU
    generator gives the same ids on every accelerator.
    """
    shape = (len(offsets), n)
    raw = torch.randint(_RANDOM_RANGE, shape, generator=generator, device=generator.device).to(offsets.device)
    rank = raw % allowed.unsqueeze(1)
    return rank + (offsets.unsqueeze(1) <= rank.unsqueeze(2)).sum(dim=2)


def draw_negatives(history: Tensor, target: Tensor, num_items: int, n: int, generator: torch.Generator) -> Tensor:
    """``[B, n]`` ids of items that are not in the history ``[B, L]`` and are not the target ``[B]``."""
    offsets, allowed = forbidden_offsets(history, target, num_items)
    return draw_from_offsets(offsets, allowed, n, generator)


def require_negatives(history: NDArray[np.int64], target: NDArray[np.int64], num_items: int) -> None:
    """Raise ``DataError`` when some row's history and target cover the whole catalogue."""
    if num_items > history.shape[1] + 1:
        return
    _, allowed = forbidden_offsets(torch.from_numpy(history), torch.from_numpy(target), num_items)
    if len(allowed) and int(allowed.min()) < 1:
        raise DataError.one(
            f"training example {int(allowed.argmin())}",
            history[int(allowed.argmin())].tolist(),
            f"with its target covers all {num_items} items: no negative can be drawn",
            "use a smaller dataset.window or a larger catalogue",
        )


def draw_candidates(
    history: NDArray[np.int64], target: int, num_items: int, n: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """``[n]`` item ids in random order: the target and n − 1 others, not in the history, without replacement.

    Raises ``DataError`` when the catalogue has too few other items.
    """
    allowed = np.setdiff1d(np.arange(num_items), np.append(history, target))
    if len(allowed) < n - 1:
        raise DataError.one("candidates", n, f"only {len(allowed) + 1} items can stand in the list", "ask for fewer")
    others = generator.choice(allowed, size=n - 1, replace=False)
    return generator.permutation(np.append(others, target)).astype(np.int64)
