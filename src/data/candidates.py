"""Items that are wrong answers: negatives for training, candidate lists for a prompt.

Both are uniform over the items that are neither in the history nor the target (DLLM2Rec's sampler; iLoRA's candidates).
Candidate lists are drawn once, each from its example's own stream, and kept in an artefact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass as document
from torch import Tensor

from src.core.data_utils import fingerprint
from src.core.documents import PARTIAL, conform, read_array
from src.core.errors import ArtefactError, DataError, Problem
from src.core.paths import MANIFEST, atomic_folder, require_finished, write_json
from src.core.seed import derive_seed
from src.data.examples import Examples

# Far above any catalogue, far below 2**63: the remainder of a division by V is uniform to within V / 2**62.
_RANDOM_RANGE = 2**62
_ARRAYS = ("example_id", "items")


def forbidden_offsets(history: Tensor, target: Tensor, num_items: int) -> tuple[Tensor, Tensor]:
    """How far the r-th allowed item lies above r: the part of a draw that depends on the row alone.

    ``history`` ``[B, L]`` padded with V, ``target`` ``[B]`` → ``offsets`` ``[B, L + 1]`` ascending and ``allowed``
    ``[B]``, the number of items that may be drawn. With the distinct forbidden ids f_0 < f_1 < …, offset j is
    f_j − j: the number of allowed items below f_j. So the r-th allowed item is r + #{j : f_j − j ≤ r}.

    Args:
        history: ``[B, L]``, padded with V.
        target: ``[B]``.
        num_items: V.
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
    """``[B, n]`` ids of items that are not in the history ``[B, L]`` and are not the target ``[B]``.

    Args:
        history: ``[B, L]``, padded with V.
        target: ``[B]``.
        num_items: V.
        n: draws a row, with replacement.
        generator: draws them; on the device of the history.
    """
    offsets, allowed = forbidden_offsets(history, target, num_items)
    return draw_from_offsets(offsets, allowed, n, generator)


def require_negatives(examples: Examples, num_items: int) -> None:
    """Raise ``DataError`` when some example's window and target cover the whole catalogue."""
    if num_items > examples.window + 1:
        return
    history, target = examples.history, examples.target
    _, allowed = forbidden_offsets(torch.from_numpy(history), torch.from_numpy(target), num_items)
    if len(allowed) and int(allowed.min()) < 1:
        raise DataError.one(
            f"training example {int(allowed.argmin())}",
            history[int(allowed.argmin())].tolist(),
            f"with its target covers all {num_items} items: no negative can be drawn",
            "use a smaller dataset.window or a larger catalogue",
        )


@document(frozen=True, config=PARTIAL)
class _Manifest:
    """What is read of the manifest."""

    fingerprints: dict[str, str]


@dataclass(frozen=True, eq=False)
class CandidateLists:
    """Candidate lists of some examples: ``example_id`` ``[N]`` int64, ``items`` ``[N, n]`` int64 in random order."""

    example_id: NDArray[np.int64]
    items: NDArray[np.int64]

    @cached_property
    def fingerprint(self) -> str:
        """Identifies every list."""
        return fingerprint(self.example_id, self.items)

    def of(self, examples: Examples) -> NDArray[np.int64]:
        """``[B, n]``: the lists of these examples, in their order.

        Raises ``ArtefactError`` when an example has none, or a list lacks its example's target (another dataset's).
        """
        missing = ~np.isin(examples.example_id, self.example_id)
        if missing.any():
            raise ArtefactError.one(
                "candidates",
                int(examples.example_id[missing][0]),
                f"{int(missing.sum())} of {len(examples)} examples have no candidate list",
                "draw lists for these examples",
            )
        order = np.argsort(self.example_id)
        items = self.items[order[np.searchsorted(self.example_id, examples.example_id, sorter=order)]]
        strange = ~(items == examples.target[:, None]).any(axis=1)
        if strange.any():
            raise ArtefactError.one(
                "candidates",
                int(examples.example_id[strange][0]),
                "the list of this example lacks its target: it belongs to other data",
                "train the teacher again",
            )
        return items


def draw_candidate_lists(examples: Examples, num_items: int, n: int, seed: int) -> CandidateLists:
    """n candidates for each example: its target and n − 1 items outside its history, without replacement, shuffled.

    A list depends on the seed and its example alone: whoever draws it again, for more or other examples, gets the same
    one. Raises ``DataError`` when the catalogue has too few items for some example.

    Args:
        examples: who gets a list.
        num_items: V.
        n: length of a list, the target included.
        seed: decides the lists.
    """
    offsets, allowed = forbidden_offsets(
        torch.from_numpy(examples.history), torch.from_numpy(examples.target), num_items
    )
    if len(allowed) and int(allowed.min()) < n - 1:
        row = int(allowed.argmin())
        rule = f"example {examples.example_id[row]} leaves {int(allowed[row]) + 1} of {num_items} items for its list"
        raise DataError.one("candidates", n, rule, "ask for fewer, or use a smaller dataset.window")
    draws = _stream(examples.example_id, derive_seed(seed, "candidates"), 2 * n - 1)
    others = torch.from_numpy(_distinct(draws[:, : n - 1], allowed.numpy()))
    items = others + (offsets.unsqueeze(1) <= others.unsqueeze(2)).sum(dim=2)
    whole = np.concatenate([items.numpy(), examples.target[:, None]], axis=1)
    order = np.argsort(draws[:, n - 1 :], axis=1, kind="stable")
    return CandidateLists(examples.example_id, np.take_along_axis(whole, order, axis=1))


def _stream(keys: NDArray[np.int64], seed: int, n: int) -> NDArray[np.uint64]:
    """``[N, n]`` random numbers of 64 bits, each row a function of its key and the seed (SplitMix64, Steele 2014)."""
    golden, first, second = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))

    def mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
        z = (z ^ (z >> np.uint64(30))) * first
        z = (z ^ (z >> np.uint64(27))) * second
        return z ^ (z >> np.uint64(31))

    start = mix(keys.astype(np.uint64) * golden + np.uint64(seed))
    return mix(start[:, None] + golden * np.arange(1, n + 1, dtype=np.uint64))


def _distinct(draws: NDArray[np.uint64], population: NDArray[np.int64]) -> NDArray[np.int64]:
    """``[N, k]`` distinct numbers below each row's population, every subset equally likely (Floyd's algorithm).

    ``draws`` ``[N, k]`` are random; their remainders are uniform to within population / 2**64.
    """
    rows, k = draws.shape
    chosen = np.full((rows, k), -1, dtype=np.int64)
    for place in range(k):
        newest = population - k + place
        drawn = (draws[:, place] % (newest + 1).astype(np.uint64)).astype(np.int64)
        taken = (chosen[:, :place] == drawn[:, None]).any(axis=1)
        chosen[:, place] = np.where(taken, newest, drawn)
    return chosen


def save_candidates(folder: Path, lists: CandidateLists, fingerprints: Mapping[str, str]) -> None:
    """Write a folder atomically, manifest last; ``fingerprints`` say which data the examples are from.

    Args:
        folder: where; replaced when it exists.
        lists: an id and n candidates for each example.
        fingerprints: of the dataset, the split and the id map.
    """
    with atomic_folder(folder) as target:
        for name in _ARRAYS:
            np.save(target / f"{name}.npy", np.ascontiguousarray(getattr(lists, name)), allow_pickle=False)
        found = {**fingerprints, "candidates": lists.fingerprint}
        write_json(target / MANIFEST, {"kind": "candidates", "candidates": lists.items.shape[1], "fingerprints": found})


def load_candidates(folder: Path, expected: Mapping[str, str]) -> CandidateLists:
    """Read what `save_candidates` wrote.

    Raises ``ArtefactError`` when it is unfinished, damaged, or has another fingerprint than one of ``expected``.
    """
    again = "train the teacher again"
    found = conform(require_finished(folder), _Manifest, folder / MANIFEST, again).fingerprints
    problems = [
        Problem(f"candidates: {name}", found.get(name), f"belongs to another {name}; this run has {value}", again)
        for name, value in expected.items()
        if found.get(name) != value
    ]
    if problems:
        raise ArtefactError([Problem("folder", str(folder), "does not fit this run"), *problems])
    lists = CandidateLists(**{name: read_array(folder / f"{name}.npy", again) for name in _ARRAYS})
    if lists.fingerprint != found.get("candidates"):
        raise ArtefactError.one("candidates", str(folder), "are damaged: not the lists that were saved", again)
    return lists
