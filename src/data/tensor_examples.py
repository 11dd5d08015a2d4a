"""Examples as tensors on the device that computes: histories of any length are gathered a batch at a time."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.data.examples import Examples


@dataclass(frozen=True, eq=False)
class TensorExamples:
    """Columns of `Examples`, and its histories as views into one array (see `src.data.examples.Histories`).

    ``items`` ``[T]`` int32; ``end``, ``earlier``, ``target``, ``example_id`` ``[N]`` int64; ``timestamp`` ``[N]``
    float64 of the target; ``window``: L, the items of history that a model sees unless it asks for more.
    """

    items: Tensor
    end: Tensor
    earlier: Tensor
    target: Tensor
    example_id: Tensor
    timestamp: Tensor
    window: int
    padding_id: int

    def __len__(self) -> int:
        return len(self.target)

    @classmethod
    def of(cls, examples: Examples, device: torch.device | str) -> TensorExamples:
        """Copied to a device; a copy, so that a trial cannot change another's data."""
        past = examples.past
        columns = (past.items, past.end, past.earlier, examples.target, examples.example_id, examples.timestamp)
        tensors = [torch.tensor(column, device=device) for column in columns]
        return cls(*tensors, window=examples.window, padding_id=past.padding_id)  # type: ignore[misc, arg-type]

    @classmethod
    def of_rows(cls, history: Tensor, length: Tensor, target: Tensor, example_id: Tensor) -> TensorExamples:
        """Examples from histories as a table ``[N, L]``, padded on the right, and their lengths ``[N]``; on the CPU.

        Args:
            history: ``[N, L]`` item ids, oldest first.
            length: ``[N]``, 0 to L.
            target: ``[N]``.
            example_id: ``[N]``, unique.
        """
        ids, width = np.asarray(example_id), np.asarray(history)
        rows = Examples.of_rows(ids, ids * 0 - 1, width, np.asarray(length), np.asarray(target), ids.astype(np.float64))
        return cls.of(rows, "cpu")

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.target.device

    def first(self, count: int) -> TensorExamples:
        """The first ``count`` examples, as views."""
        columns = {
            name: getattr(self, name)[:count] for name in ("end", "earlier", "target", "example_id", "timestamp")
        }
        return replace(self, **columns)

    def of_some(self, rows: Tensor) -> TensorExamples:
        """These rows alone, ``[n]``; their histories stay where they are."""
        chosen = {name: getattr(self, name)[rows] for name in ("end", "earlier", "target", "example_id", "timestamp")}
        return replace(self, **chosen)

    def read(self, rows: Tensor, window: int = 0) -> tuple[Tensor, Tensor]:
        """The last ``window`` items (0: L) of some rows' histories.

        Args:
            rows: row numbers, ``[B]`` int64.
            window: how many items at most; 0 for the examples' own window.

        Returns:
            Histories ``[B, window]`` int64, oldest first and padded on the right, and their lengths ``[B]`` int64.
        """
        width = window or self.window
        length = self.earlier[rows].clamp(max=width)
        place = torch.arange(width, device=self.device)
        source = (self.end[rows] - length).unsqueeze(1) + place
        # a place behind the history may lie behind the array, too
        held = self.items[source.clamp(max=max(len(self.items) - 1, 0))] if len(self.items) else source * 0
        return held.long().masked_fill(place >= length.unsqueeze(1), self.padding_id), length

    def read_all(self, rows: Tensor) -> Tensor:
        """Everything that came before each row's target, ``[B, longest of these]`` int64, padded on the right."""
        longest = int(self.earlier[rows].max()) if len(rows) else 0
        return self.read(rows, max(longest, 1))[0]

    @cached_property
    def _dense(self) -> tuple[Tensor, Tensor]:
        return self.read(torch.arange(len(self), device=self.device))

    @property
    def history(self) -> Tensor:
        """``[N, L]`` int64: the last L items of every history."""
        return self._dense[0]

    @property
    def length(self) -> Tensor:
        """``[N]`` int64: how many of them there are, 0..L."""
        return self.earlier.clamp(max=self.window)

    def tensors(self) -> dict[str, Tensor]:
        """The columns by name: what is written to a file; `of_tensors` reads it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value if isinstance(value, Tensor) else torch.tensor(value) for name, value in values.items()}

    @classmethod
    def of_tensors(cls, tensors: dict[str, Tensor]) -> TensorExamples:
        """Examples from what `tensors` gave."""
        values: dict[str, Any] = dict(tensors)
        for name in ("window", "padding_id"):
            values[name] = int(values[name])
        return cls(**values)
