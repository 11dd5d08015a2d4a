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
from src.student.base import Rows, ScorePart, SequenceStudent
from src.student.columns import Columns, DrawShared
from src.student.datamodule import StudentData
from src.student.losses import DroTerms, dro_terms
from src.student.new_items import TextMaps, summed
from src.student.objectives import DrawNegatives, column_prior_scores, train_prior_scores
from src.student.segments import Segments, represent_rows
from src.student.settings import NetworkSettings

if TYPE_CHECKING:
    from src.distill.settings import DistillSettings


class Part(nn.Module):
    """What a student has only while it is taught, and what is folded into it afterwards.

    With a loss over sampled items it is asked about these ``items`` alone, and must not compute the whole table.
    """

    def begin(self) -> None:
        """A training step, or an evaluation's batch, begins."""

    def item_rows(self, items: Tensor | None = None) -> Tensor | None:
        """``[V + 1, D]`` to be added to the item embeddings (and to the output rows that are tied to them); of
        ``items`` ``[*]``, which may be padding, alone: ``[*, D]``."""
        return None

    def extra(self, history: Tensor) -> Tensor | None:
        """``[B, L, D]``: `item_rows` of a history's items, perhaps by a shorter way."""
        rows = self.item_rows()
        return None if rows is None else nn.functional.embedding(history, rows)

    def output(self, weight: Tensor, bias: Tensor, items: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Change the output rows and biases that score, in place of the student's own.

        Args:
            weight: ``[V, R]``.
            bias: ``[V]``.
            items: ``[n]``: where given, rows and biases are of these items.

        Returns:
            Both, changed.
        """
        return weight, bias

    def text_maps(self) -> TextMaps | None:
        """From the text embedding of an item that training never saw to what this part makes of its row and bias; None
        where it knows nothing of such an item."""
        return None

    def prior(self, scores: Tensor, items: Tensor | None = None) -> Tensor:
        """What of the prior's scores ``[B, V]`` counts in this step; they are of ``items`` ``[B, M]`` where given."""
        return scores


class TaughtStudent(nn.Module):
    """A student with the parts that its terms add."""

    def __init__(self, student: SequenceStudent, parts: Mapping[str, Part | nn.Module]) -> None:
        super().__init__()
        self.student, self.parts = student, nn.ModuleDict(parts)
        #: whether parts are asked about few items at a time (a loss over sampled items)
        self.gathered = False

    @property
    def history_length(self) -> int:
        """See `Recommender.history_length`."""
        return self.student.history_length

    @property
    def num_items(self) -> int:
        """Number of items, V."""
        return self.student.num_items

    @property
    def has_output_parts(self) -> bool:
        """Whether a part changes the output rows, so that the student's own scorer is not what scores."""
        return any(self.student.tied or type(part).output is not Part.output for part in self._own)

    @property
    def _own(self) -> list[Part]:
        return [part for part in self.parts.values() if isinstance(part, Part)]

    def represent(self, history: Tensor, length: Tensor) -> Tensor:
        """``[B, R]`` of histories no wider than the student's window."""
        return self.student.encode(history, length, self.extra(history))

    def extra(self, history: Tensor) -> Tensor | None:
        """``[B, L, D]``: what the parts add to a history's item embeddings."""
        extra = None
        for part in self._own:
            if (added := self._added(part, history)) is not None:
                extra = added if extra is None else extra + added
        return extra

    def _added(self, part: Part, history: Tensor) -> Tensor | None:
        if not self.gathered:
            return part.extra(history)
        part.begin()
        return part.item_rows(history)

    def column_logits(self, representation: Tensor, columns: Columns, prior_scores: Tensor | None) -> Tensor:
        """Score the items that a step looks at alone.

        Args:
            representation: ``[B, R]``.
            columns: which items.
            prior_scores: ``[B, M]`` of them; None without a prior.

        Returns:
            ``[B, M]``.
        """
        rows = self._output(columns.flat) if self.has_output_parts else None
        if prior_scores is not None:
            for part in self._own:
                prior_scores = part.prior(prior_scores, columns.items)
        return self.student.column_logits(representation, columns, prior_scores, rows)

    @property
    def in_parts(self) -> bool:
        """Whether scores are computed in parts of the catalogue, as `SequenceStudent.in_parts` says."""
        return self.student.in_parts

    def score_parts(self, history: Tensor, length: Tensor) -> ScorePart:
        """Give a function that scores parts of the catalogue, as `SequenceStudent.score_parts` does."""
        representation = self.represent(*self.student.seen(history, length))

        def score(first: int, last: int) -> Tensor:
            items = torch.arange(first, last, device=representation.device)
            return nn.functional.linear(representation, *self._output(items))

        return score

    def logits(self, representation: Tensor, prior_scores: Tensor | None) -> Tensor:
        """``[B, V]``, from representations ``[B, R]`` and what the prior says, ``[B, V]``."""
        if prior_scores is not None:
            for part in self._own:
                prior_scores = part.prior(prior_scores)
        if not self.has_output_parts:
            return self.student.logits(representation, prior_scores)
        own = nn.functional.linear(representation, *self._output())
        return self.student.add_prior_scores(own, prior_scores)

    def _output(self, items: Tensor | None = None) -> Rows:
        """Output rows and biases of the catalogue, or of ``items`` ``[n]``."""
        weight, bias = self._own_rows(items)
        for part in self._own:
            if self.student.tied and (rows := part.item_rows(items)) is not None:
                weight = weight + (rows[:-1] if items is None else rows)
            weight, bias = part.output(weight, bias, items)
        return weight, bias

    def _own_rows(self, items: Tensor | None) -> Rows:
        scorer = self.student.scorer
        if items is not None:
            return scorer.rows(items)
        weight: Tensor = scorer.weight
        bias: Tensor = scorer.bias
        return weight, bias

    def forward(self, history: Tensor, length: Tensor) -> Tensor:
        """Logits ``[B, V]``."""
        seen = self.student.seen(history, length)
        return self.logits(self.represent(*seen), self.student.prior_scores(history, length))

    @torch.no_grad()
    def fold(self) -> SequenceStudent:
        """The student alone, with what its parts added in its own tables; it gives the same logits."""
        self.eval()  # what a part leaves out in training is no part of the student
        self._remember_new_items()
        has_output_parts = self.has_output_parts
        weight, bias = self._output()
        added = [rows for part in self._own if (rows := part.item_rows()) is not None]
        for rows in added:
            self.student.item_embeddings.weight += rows
        if has_output_parts:
            self.student.set_output(weight, bias)
        self.parts = nn.ModuleDict()
        return self.student

    def _remember_new_items(self) -> None:
        """Keep how an item that is added later gets its row and bias, where a part makes them of its text."""
        maps = [found for part in self._own if (found := part.text_maps()) is not None]
        if any(type(part).output is not Part.output and part.text_maps() is not None for part in self._own):
            self.student.from_text = summed(maps).tensors()


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
    #: whether terms look at the teacher's candidates, and at a negative of each row's own
    #: how training rows share forward passes; None where each has its own
    segments: Segments | None = None
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
        if self.segments is not None:
            return represent_rows(model.student, self.segments, train, self.rows, model.extra)
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
        sample, those that are estimated to be among these, and `src.student.columns.NONE`."""
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
