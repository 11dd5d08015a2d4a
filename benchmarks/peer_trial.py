"""What every side of `against_peers.py` does alike: read the same splits, train until validation stops rising, count.

Runs in the environment of the library that is measured, so it needs nothing but numpy and torch. A side gives a way to
the scores of histories and calls `Trial.epoch_ended` after each epoch. Validation is a seeded part of the validation
split, the same for every side; CPU seconds are the process's own, and those of validation are left out.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

TOP = 20
_BATCH = 256

#: ``score(histories [B]) -> [B, V]``; a history is an array of items, oldest first
Score = Callable[[list[NDArray[Any]]], Tensor]


@dataclass(frozen=True, eq=False)
class Rows:
    """Histories as views into one array of items, as in `src.data.examples.Histories`; ``target`` is empty where the
    answers are withheld."""

    items: NDArray[Any]
    end: NDArray[Any]
    earlier: NDArray[Any]
    target: NDArray[Any]

    def __len__(self) -> int:
        return len(self.end)

    def histories(self, rows: NDArray[Any]) -> list[NDArray[Any]]:
        """The whole histories of some rows."""
        return [self.items[self.end[row] - self.earlier[row] : self.end[row]] for row in rows]

    def batches(self) -> Iterator[NDArray[Any]]:
        """Row numbers, a few hundred at a time."""
        yield from np.array_split(np.arange(len(self)), max(1, -(-len(self) // _BATCH)))

    def sequences(self) -> list[NDArray[Any]]:
        """What each user did, oldest first: the longest history that a row holds, and that row's target."""
        first = self.end - self.earlier
        last = {int(start): row for row, start in sorted(enumerate(first), key=lambda pair: self.end[pair[0]])}
        return [np.append(self.items[start : self.end[row]], self.target[row]) for start, row in last.items()]


@dataclass(frozen=True, eq=False)
class Task:
    """One training: the splits, the side's own settings, the seed and the rule when to stop."""

    train: Rows
    validation: Rows
    test: Rows
    shown: NDArray[Any]
    num_items: int
    settings: dict[str, Any]
    seed: int
    epochs: int
    patience: int

    @classmethod
    def of_arguments(cls) -> tuple[Task, Path]:
        """From the command line (a file of splits, a JSON object, a file to write); one thread."""
        torch.set_num_threads(1)
        splits, asked, out = np.load(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
        names = ("items", "end", "earlier", "target")
        rows = [Rows(*(splits[f"{split}_{name}"] for name in names)) for split in ("train", "validation", "test")]
        return cls(*rows, splits["shown"], int(splits["num_items"]), **asked), out


@torch.no_grad()
def ndcg(score: Score, rows: Rows, shown: NDArray[Any]) -> float:
    """NDCG@20 over the whole catalogue of some rows; a tie counts against the target."""
    total = 0.0
    for part in np.array_split(shown, max(1, -(-len(shown) // _BATCH))):
        scores = score(rows.histories(part))
        own = scores.gather(1, torch.from_numpy(rows.target[part]).unsqueeze(1))
        rank = (scores >= own).sum(dim=1)
        total += float(((rank <= TOP) / (rank + 1.0).log2()).sum())
    return total / len(shown)


class Trial:
    """CPU seconds of training, the curve over epochs, the best state, and when to stop."""

    def __init__(self, task: Task, module: nn.Module, score: Score, since: float | None = None) -> None:
        """The clock runs from ``since`` (of `time.process_time`), or from now."""
        self.task, self.module, self.score = task, module, score
        self.curve: list[dict[str, float]] = []
        self.best, self.stale, self.state = -1.0, 0, {}  # type: float, int, dict[str, Tensor]
        self.seconds, self._since = 0.0, time.process_time() if since is None else since

    def epoch_ended(self) -> bool:
        """Judge an epoch on validation, outside the clock; true where training is to end."""
        self.seconds += time.process_time() - self._since
        training = self.module.training
        self.module.eval()
        found = ndcg(self.score, self.task.validation, self.task.shown)
        self.module.train(training)
        self.curve.append({"seconds": self.seconds, "ndcg": found})
        self.stale += 1
        if found > self.best:
            self.best, self.stale = found, 0
            self.state = {name: value.clone() for name, value in self.module.state_dict().items()}
        print(f"epoch {len(self.curve)}: {self.seconds:.1f} s, validation {found:.4f}", file=sys.stderr, flush=True)
        self._since = time.process_time()
        return self.stale >= self.task.patience or len(self.curve) >= self.task.epochs

    @torch.no_grad()
    def write(self, out: Path) -> None:
        """The best epoch's scores of the whole validation and test split, then the curve."""
        self.module.load_state_dict(self.state)
        self.module.eval()
        for name, rows in (("validation", self.task.validation), ("test", self.task.test)):
            scores = torch.cat([self.score(rows.histories(part)) for part in rows.batches()])
            np.save(out.with_suffix(f".{name}.npy"), scores.float().numpy())
        parameters = sum(value.numel() for value in self.module.parameters())
        asked = {"settings": self.task.settings, "seed": self.task.seed}
        out.write_text(json.dumps({**asked, "parameters": parameters, "curve": self.curve}))


def left_padded(histories: list[NDArray[Any]], width: int, padding: int) -> Tensor:
    """The last ``width`` items of each history, ``[B, width]``, behind the padding."""
    table = np.full((len(histories), width), padding, np.int64)
    for row, history in enumerate(histories):
        if len(history):
            table[row, -min(len(history), width) :] = history[-width:]
    return torch.from_numpy(table)
