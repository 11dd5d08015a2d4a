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
from torch import Tensor

from src.core.errors import Problem
from src.distill.data_bridge import TeachingRows
from src.distill.parts import TaughtStudent
from src.student.base import SequenceStudent
from src.student.datamodule import StudentData
from src.student.losses import DroTerms, dro_terms
from src.student.objectives import DrawNegatives, column_prior_scores, train_prior_scores
from src.student.sampled_columns import Columns, DrawShared
from src.student.settings import NetworkSettings
from src.student.shared_passes import SharedPasses, represent_rows

if TYPE_CHECKING:
    from src.distill.settings import DistillSettings


@dataclass
class Step:
    """What is known in one training step; each quantity is computed when a term first asks for it.

    Logits are ``[B, M]``. Their columns are the catalogue, column i being item i, unless the loss is one over sampled
    items: then they are `columns`. Targets, candidates and negatives are told as columns, so that a term looks at
    either in the same way; what it adds up over all columns it weights with ``log_weight``.

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
    #: draws the items that all rows share, for a loss over sampled items
    shared: DrawShared | None = None
    #: how training rows share forward passes; None where each has its own
    shared_passes: SharedPasses | None = None
    reads_candidates: bool = True
    reads_negatives: bool = True
    #: ``[V]``, what is added to the logarithms of the items' weights: -inf for items that are no wrong answers; None:
    #: all are
    left_out: Tensor | None = None

    @cached_property
    def columns(self) -> Columns | None:
        """The items that stand for the catalogue; None where the catalogue stands for itself."""
        if self.shared is None:
            return None
        own = [self._target_items.unsqueeze(1)]
        if self.reads_candidates:
            own.append(self.teaching.ranking(self.rows)[0])
        if self.reads_negatives:
            own.append(self.draw(self.rows)[:, :1])
        return Columns.of(torch.cat(own, dim=1), self.shared(), self.representation.dtype)

    @cached_property
    def _target_items(self) -> Tensor:
        return self.data.train.target[self.rows]

    @cached_property
    def target(self) -> Tensor:
        """``[B]``, the target's column."""
        return self._target_items if self.columns is None else self.columns.first[:, 0]

    @cached_property
    def negatives(self) -> Tensor:
        """``[B, n]`` columns, drawn once a step."""
        return self.draw(self.rows) if self.columns is None else self.columns.first[:, -1:]

    @cached_property
    def representation(self) -> Tensor:
        """The student's representation of each history, ``[B, R]``."""
        model, train = self.model, self.data.train
        if self.shared_passes is not None:
            return represent_rows(model.student, self.shared_passes, train, self.rows, model.extra)
        return model.represent(*train.read(self.rows, model.student.window))

    @cached_property
    def prior_scores(self) -> Tensor | None:
        """``[B, M]``, out of fold; None for a student without a prior."""
        if self.columns is None:
            return train_prior_scores(self.model.student, self.data, self.rows)
        return column_prior_scores(self.model.student, self.data, self.rows, self.columns)

    @cached_property
    def logits(self) -> Tensor:
        """Scores of the columns that the step looks at, ``[B, M]``."""
        if self.columns is None:
            return self.model.logits(self.representation, self.prior_scores)
        return self.model.column_logits(self.representation, self.columns, self.prior_scores)

    @property
    def log_weight(self) -> Tensor | None:
        """``[B, M]``, the logarithm of how many items a column stands for; None where each stands for one."""
        return None if self.columns is None else self.columns.log_weight

    @cached_property
    def answer_log_weight(self) -> Tensor | None:
        """As `log_weight` for a sum over what may be an answer: -inf for an item that is left out. ``[V]`` where the
        columns are the catalogue."""
        return self.left_out if self.columns is None else self.columns.weight_of_answers(self.left_out)

    @cached_property
    def dro(self) -> DroTerms:
        """The catalogue-wide part of DRO."""
        p = self.data.propensity
        return dro_terms(
            self.logits, p if self.columns is None else p[self.columns.items], self.settings.beta, self.log_weight
        )

    def ranked_high(self, count: int) -> Tensor:
        """The columns of the student's own ``count`` best items, best first: ``[B, ≤ count]``. Where the columns are a
        sample, those that are estimated to be among these, and `src.student.sampled_columns.NONE`."""
        logits = self.logits.detach()
        if self.columns is None:
            return logits.topk(min(count, logits.shape[1]), dim=1).indices
        return self.columns.ranked_high(logits, count)

    @cached_property
    def ranking(self) -> tuple[Tensor, Tensor]:
        """The columns of the teacher's first ``candidate_topk`` candidates and their distances, ``[B, K]``; arbitrary
        where a row has no label. The teacher may list more: trials of a search share its outputs."""
        candidates, distances = self.teaching.ranking(self.rows)
        if self.columns is not None:
            candidates = self.columns.first[:, 1 : 1 + candidates.shape[1]]
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
    ``reads_negatives``: whether it reads `Step.negatives`; ``order``: its place in the sum (floating-point sums depend
    on it); ``shared``: those of its keys that every term which reads labels reads as well; ``also_needs``: for some of
    its keys, another key of ``distill`` that must be above 0, too, before anything reads them.
    """

    name: ClassVar[str]
    arm: ClassVar[str]
    title: ClassVar[str]
    Settings: ClassVar[type]
    switches: ClassVar[tuple[str, ...]]
    reads_labels: ClassVar[bool] = False
    reads_negatives: ClassVar[bool] = False
    order: ClassVar[int] = 100
    shared: ClassVar[tuple[str, ...]] = ()
    also_needs: ClassVar[Mapping[str, str]] = {}

    def is_on(self, settings: DistillSettings) -> bool:
        """Whether these settings switch it on."""
        return any(getattr(settings, key) > 0 for key in self.switches)

    def off(self, student: NetworkSettings) -> dict[str, float]:
        """The keys and values at which a distilled student is the student alone."""
        return dict.fromkeys(self.switches, 0.0)

    def student(self, student: NetworkSettings) -> NetworkSettings:
        """The settings of the student that is taught, where the term is on."""
        return student

    def own_keys(self) -> tuple[str, ...]:
        """The keys that are its own."""
        return tuple(item.name for item in fields(self.Settings))

    def part(
        self, student: SequenceStudent, settings: DistillSettings, teaching: TeachingRows, data: StudentData
    ) -> Any:
        """Make the module that the student has while it is taught; draws from a stream of its own.

        Args:
            student: the student itself.
            settings: all terms' keys.
            teaching: what the teacher said.
            data: the training rows.

        Returns:
            The module, or None where the term needs none.
        """
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
    def needs_texts(self) -> bool:
        """Whether it reads a language model's embeddings of the items' texts, whoever teaches."""
        return False

    @property
    def scores_unseen(self) -> bool:
        """Whether it gives the student a score of its own, from its text, for an item that was never a target."""
        return False

    @property
    def needs_logits(self) -> bool:
        """Whether its loss looks at the whole catalogue."""
        return True
