"""A dataset as tensors on the training device: no per-row Python in a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from src.core.errors import ArtefactError
from src.data.examples import SequenceData
from src.data.tensor_examples import TensorExamples
from src.student.losses import propensity
from src.student.prior import Prior


@dataclass(frozen=True, eq=False)
class StudentData:
    """What training a student reads: two splits, the catalogue's size, p ``[V]`` float32, how often each item is a
    training target ``[V]`` int64, and the prior where one was fitted. No test split. ``item_text``: the items' text
    embeddings ``[V, W]``, where something is computed from them. ``other_priors``: those that a student may have in
    place of `prior`, by name; each is read when it is asked for, since its scores are ``[N, V]``.
    """

    train: TensorExamples
    validation: TensorExamples
    num_items: int
    history_length: int
    propensity: Tensor
    item_counts: Tensor
    prior: Prior | None = None
    item_text: Tensor | None = None
    other_priors: Mapping[str, Callable[[], Prior]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        data: SequenceData,
        device: torch.device | str,
        prior: Prior | None = None,
        item_text: Tensor | None = None,
        other_priors: Mapping[str, Callable[[], Prior]] | None = None,
    ) -> StudentData:
        """Tensors of a loaded dataset.

        Args:
            data: the dataset, split.
            device: where the tensors are wanted.
            prior: the scores that a network adds to its own; None: none.
            item_text: embeddings of the items' texts ``[V, W]``; None for students that read none.
        """
        counts = torch.from_numpy(data.item_counts)
        return cls(
            train=TensorExamples.of(data.train, device),
            validation=TensorExamples.of(data.validation, device),
            num_items=data.num_items,
            history_length=data.history_length,
            propensity=propensity(counts).float().to(device),
            item_counts=counts.to(device),
            prior=prior,
            item_text=None if item_text is None else item_text.to(device),
            other_priors=other_priors or {},
        )

    def with_prior(self, name: str) -> StudentData:
        """The same with another one of its priors; raises ``ArtefactError`` when that was not fitted."""
        if name not in self.other_priors:
            raise ArtefactError.one("student.prior", name, "was not fitted before this training")
        return replace(self, prior=self.other_priors[name]())

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.train.device
