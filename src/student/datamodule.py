"""A dataset as tensors on the training device: no per-row Python in a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from src.data.examples import SequenceData
from src.data.tensor_examples import TensorExamples
from src.student.losses import propensity


@dataclass(frozen=True, eq=False)
class StudentData:
    """What training a student reads: two splits, the catalogue's size, p ``[V]`` float32. No test split."""

    train: TensorExamples
    validation: TensorExamples
    num_items: int
    history_length: int
    propensity: Tensor

    @classmethod
    def of(cls, data: SequenceData, device: torch.device | str) -> StudentData:
        """From a loaded dataset."""
        counts = torch.from_numpy(data.item_counts)
        return cls(
            train=TensorExamples.of(data.train, device),
            validation=TensorExamples.of(data.validation, device),
            num_items=data.num_items,
            history_length=data.history_length,
            propensity=propensity(counts).float().to(device),
        )

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.train.device
