"""What an approximate index finds of the exact best items, and what it costs: seconds of processors and recall@k.

    python -m benchmarks.index_recall                       # 200,000 items, 2,000 histories
    python -m benchmarks.index_recall --items 50000 --effort 16 64 256

The student is a transformer whose item table is drawn around centres, as items of a trained one lie in groups, with
norms that spread by a factor of three; its other weights are as they are initialised. How much an index finds depends
on such things: `recommend index=usearch` tells it for a student of your own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from src.data.id_map import IdMap
from src.serving.approximate_index import COMPARED, IndexedStudent, as_inner_product
from src.serving.catalogue import Catalogue, padded
from src.serving.students import ModelStudent
from src.student.base import SequenceStudent
from src.student.models import build_recommender, student_settings

_BATCH, _CENTRES = 512, 2000


@dataclass(frozen=True)
class Timed:
    """What a function gave, and what it took."""

    value: Any
    seconds: float
    cpu_seconds: float


def timed(do: Callable[[], Any]) -> Timed:
    """Run it once."""
    clock, cpu = time.perf_counter(), time.process_time()
    value = do()
    return Timed(value, time.perf_counter() - clock, time.process_time() - cpu)


def grouped_student(num_items: int, width: int, centres: int) -> ModelStudent:
    """A student over items that lie in groups."""
    torch.manual_seed(0)
    model = build_recommender(student_settings("transformer", width=width), num_items, 20)
    assert isinstance(model, SequenceStudent)
    middle = torch.randn(centres, width)
    drawn = middle[torch.randint(centres, (num_items,))] + 0.7 * torch.randn(num_items, width)
    norm = 0.5 + torch.rand(num_items, 1)
    with torch.no_grad():
        model.item_embeddings.weight[:-1] = drawn / drawn.norm(dim=1, keepdim=True) * norm
    names = tuple(f"i{item}" for item in range(num_items))
    return ModelStudent(model.eval(), Catalogue(IdMap(names, names)), "grouped", {})


def _in_batches(
    student: IndexedStudent | ModelStudent, history: NDArray[np.int64], length: NDArray[np.int64], k: int
) -> None:
    for start in range(0, len(history), _BATCH):
        student.best(history[start : start + _BATCH], length[start : start + _BATCH], k, True)


def main(given: Sequence[str] | None = None) -> None:
    """Print a line for the exact search, one for building, one for each effort."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--effort", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args(given)
    torch.set_num_threads(chosen.threads)
    exact = grouped_student(chosen.items, chosen.width, min(_CENTRES, chosen.items))
    random = np.random.default_rng(0)
    history, length = padded(
        [random.integers(0, chosen.items, random.integers(1, 21)).tolist() for _ in range(chosen.users)], chosen.items
    )
    whole = timed(lambda: _in_batches(exact, history, length, chosen.k))
    per = 1000 / chosen.users
    print(f"exact, {chosen.items:,} items: {whole.cpu_seconds * per:.2f} s of processors for a thousand users")
    built = timed(lambda: IndexedStudent(exact, as_inner_product(exact.model), 64, chosen.threads))
    index: IndexedStudent = built.value
    print(f"index built: {built.cpu_seconds:.1f} s of processors")
    _in_batches(index, history[:COMPARED], length[:COMPARED], chosen.k)  # from here on it compares no more
    for effort in chosen.effort:
        index.index.expansion_search = effort
        found = timed(lambda: _in_batches(index, history, length, chosen.k))
        print(
            f"effort {effort}: {found.cpu_seconds * per:.3f} s of processors for a thousand users, "
            f"{whole.cpu_seconds / found.cpu_seconds:.1f} times as fast, "
            f"recall@{chosen.k} {recall(index, exact, history[:COMPARED], length[:COMPARED], chosen.k):.4f}"
        )


def recall(
    index: IndexedStudent, exact: ModelStudent, history: NDArray[np.int64], length: NDArray[np.int64], k: int
) -> float:
    """The share of the exact best that the index finds."""
    found, _ = index.best(history, length, k, True)
    wanted, _ = exact.best(history, length, k, True)
    return float(np.mean([np.isin(row, other).mean() for row, other in zip(wanted, found, strict=True)]))


if __name__ == "__main__":
    main()
