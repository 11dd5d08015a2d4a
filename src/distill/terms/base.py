"""What a term of the distillation is, and what a training step knows when terms look at it.

A term is an object of a class below `Term`, in a file of its own in this folder; it carries its settings, the keys that
switch it on, and its arm in a fair comparison. Settings, search spaces, arms and the no-distillation point follow from
that: nothing else names a term.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from src.core.errors import Problem
from src.distill.data_bridge import TeachingRows
from src.student.base import SequenceStudent
from src.student.datamodule import StudentData
from src.student.losses import DroTerms, dro_terms
from src.student.objectives import DrawNegatives, train_prior_scores
from src.student.settings import NetworkSettings

if TYPE_CHECKING:
    from src.distill.settings import DistillSettings


class Part(nn.Module):
    """What a student has only while it is taught, and what is folded into it afterwards."""

    def item_rows(self) -> Tensor | None:
        """``[V + 1, D]`` to be added to the item embeddings (and to the output rows that are tied to them)."""
        return None

    def extra(self, history: Tensor) -> Tensor | None:
        """``[B, L, D]``: `item_rows` of a history's items, perhaps by a shorter way."""
        rows = self.item_rows()
        return None if rows is None else nn.functional.embedding(history, rows)

    def output(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The output rows ``[V, R]`` and biases ``[V]`` that take the place of the student's."""
        return weight, bias

    def prior(self, scores: Tensor) -> Tensor:
        """What of the prior's scores ``[B, V]`` counts in this step."""
        return scores


class TaughtStudent(nn.Module):
    """A student with the parts that its terms add."""

    def __init__(self, student: SequenceStudent, parts: Mapping[str, Part | nn.Module]) -> None:
        super().__init__()
        self.student, self.parts = student, nn.ModuleDict(parts)

    @property
    def history_length(self) -> int:
        """See `Recommender.history_length`."""
        return self.student.history_length

    @property
    def has_output_parts(self) -> bool:
        """Whether a part changes the output rows, so that the student's own scorer is not what scores."""
        return any(self.student.tied or type(part).output is not Part.output for part in self._own)

    @property
    def _own(self) -> list[Part]:
        return [part for part in self.parts.values() if isinstance(part, Part)]

    def represent(self, history: Tensor, length: Tensor) -> Tensor:
        """``[B, R]`` of histories no wider than the student's window."""
        extra = None
        for part in self._own:
            if (added := part.extra(history)) is not None:
                extra = added if extra is None else extra + added
        return self.student.encode(history, length, extra)

    def logits(self, representation: Tensor, prior_scores: Tensor | None) -> Tensor:
        """``[B, V]``, from representations ``[B, R]`` and what the prior says, ``[B, V]``."""
        if prior_scores is not None:
            for part in self._own:
                prior_scores = part.prior(prior_scores)
        if not self.has_output_parts:
            return self.student.logits(representation, prior_scores)
        own = nn.functional.linear(representation, *self._output())
        return self.student.add_prior_scores(own, prior_scores)

    def _output(self) -> tuple[Tensor, Tensor]:
        weight: Tensor = self.student.scorer.weight
        bias: Tensor = self.student.scorer.bias
        for part in self._own:
            if self.student.tied and (rows := part.item_rows()) is not None:
                weight = weight + rows[:-1]
            weight, bias = part.output(weight, bias)
        return weight, bias

    def forward(self, history: Tensor, length: Tensor) -> Tensor:
        """Logits ``[B, V]``."""
        seen = self.student.seen(history, length)
        return self.logits(self.represent(*seen), self.student.prior_scores(history, length))

    @torch.no_grad()
    def fold(self) -> SequenceStudent:
        """The student alone, with what its parts added in its own tables; it gives the same logits."""
        self.eval()  # what a part leaves out in training is no part of the student
        has_output_parts = self.has_output_parts
        weight, bias = self._output()
        added = [rows for part in self._own if (rows := part.item_rows()) is not None]
        for rows in added:
            self.student.item_embeddings.weight += rows
        if has_output_parts:
            self.student.set_output(weight, bias)
        self.parts = nn.ModuleDict()
        return self.student


@dataclass
class Step:
    """What is known in one training step; each quantity is computed when a term first asks for it.

    ``settings`` are the `DistillSettings`, ``rows`` ``[B]`` numbers of training rows.
    """

    model: TaughtStudent
    data: StudentData
    teaching: TeachingRows
    student_settings: NetworkSettings
    settings: DistillSettings
    draw: DrawNegatives
    rows: Tensor
    #: ``[B]`` 1.0 where a row is labelled and selected; the objective decides when a term asks
    taught_rows: Any = field(default=None, repr=False)

    @cached_property
    def target(self) -> Tensor:
        """``[B]``."""
        return self.data.train.target[self.rows]

    @cached_property
    def negatives(self) -> Tensor:
        """``[B, n]``, drawn once a step."""
        return self.draw(self.rows)

    @cached_property
    def representation(self) -> Tensor:
        """``[B, R]``."""
        return self.model.represent(*self.data.train.read(self.rows, self.model.student.window))

    @cached_property
    def prior_scores(self) -> Tensor | None:
        """``[B, V]``, out of fold; None for a student without a prior."""
        return train_prior_scores(self.model.student, self.data, self.rows)

    @cached_property
    def logits(self) -> Tensor:
        """``[B, V]``."""
        return self.model.logits(self.representation, self.prior_scores)

    @cached_property
    def dro(self) -> DroTerms:
        """The catalogue-wide part of DRO."""
        return dro_terms(self.logits, self.data.propensity, self.settings.beta)

    @cached_property
    def ranking(self) -> tuple[Tensor, Tensor]:
        """The teacher's first ``candidate_topk`` candidates and their distances, ``[B, K]``; arbitrary where a row has
        no label. The teacher may list more: trials of a search share its outputs."""
        candidates, distances = self.teaching.ranking(self.rows)
        return candidates[:, : self.settings.candidate_topk], distances[:, : self.settings.candidate_topk]

    @cached_property
    def taught(self) -> Tensor:
        """``[B]`` 1.0 where a row is labelled and selected, else 0."""
        found: Tensor = self.taught_rows(self)
        return found


class Term:
    """One term of the distillation. Subclasses are plain classes without state; one object of each is registered.

    ``name``: also the key of its part; ``arm`` and ``title``: its arm in a fair comparison; ``Settings``: a frozen
    dataclass with its keys, all of which become keys of ``distill``; ``switches``: the keys, one of which must be above
    0 for the term to count; ``reads_labels``: whether it reads the teacher's labels, and policies decide on which rows;
    ``order``: its place in the sum (floating-point sums depend on it); ``shared``: those of its keys that every term
    which reads labels reads as well; ``also_needs``: for some of its keys, another key of ``distill`` that must be
    above 0, too, before anything reads them.
    """

    name: ClassVar[str]
    arm: ClassVar[str]
    title: ClassVar[str]
    Settings: ClassVar[type]
    switches: ClassVar[tuple[str, ...]]
    reads_labels: ClassVar[bool] = False
    order: ClassVar[int] = 100
    shared: ClassVar[tuple[str, ...]] = ()
    also_needs: ClassVar[Mapping[str, str]] = {}

    def is_on(self, settings: DistillSettings) -> bool:
        """Whether these settings switch it on."""
        return any(getattr(settings, key) > 0 for key in self.switches)

    def off(self, student: NetworkSettings) -> dict[str, float]:
        """The keys and values at which a distilled student is the student alone."""
        return dict.fromkeys(self.switches, 0.0)

    def own_keys(self) -> tuple[str, ...]:
        """The keys that are its own."""
        return tuple(item.name for item in fields(self.Settings))

    def part(
        self, student: SequenceStudent, settings: DistillSettings, teaching: TeachingRows, data: StudentData
    ) -> Any:
        """A module that the student gets while it is taught, or None; draws from a stream of its own."""
        return None

    def problems(self, settings: DistillSettings, student: NetworkSettings) -> list[Problem]:
        """What is wrong with these settings beside this student's, where the term is on."""
        return []

    def loss(self, step: Step) -> Tensor | None:
        """Its weighted part of the loss, a scalar; None where it has none (a term that only adds a part)."""
        return None

    @property
    def uses_teacher(self) -> bool:
        """Whether a teacher's labels or embeddings have a part in it."""
        return True

    @property
    def needs_embeddings(self) -> bool:
        """Whether it reads embeddings, which only a language model has."""
        return False

    @property
    def needs_logits(self) -> bool:
        """Whether its loss looks at the whole catalogue."""
        return True
