"""What terms add to a student while it is taught: parts of its tables and scores, folded into it afterwards."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from src.student.base import Rows, ScorePart, SequenceStudent
from src.student.new_items import TextMaps, summed
from src.student.sampled_columns import Columns


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
        """Maps from the text embedding of an item that training never saw to what this part makes of its row and bias.

        None where it knows nothing of such an item.
        """
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
