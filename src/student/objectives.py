"""What a student minimises without a teacher: BCE, CE or a loss over sampled items, with an optional DRO term."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from src.core.errors import ConfigError
from src.core.seed import torch_generator
from src.data.candidates import draw_negatives
from src.student.base import SequenceStudent
from src.student.datamodule import StudentData
from src.student.losses import bce_loss, ce_loss, dro_at, dro_terms, gbce_loss, sampled_ce
from src.student.sampled_columns import Columns, DrawShared, Proposal
from src.student.settings import NetworkSettings
from src.student.shared_passes import SharedPasses, represent_rows

#: ``student.loss=auto`` takes the whole catalogue up to so many items. Measured (`benchmarks.training_target_cost`): a
#: target of ``ce`` costs 53 µs at 1,700 items and 253 µs at 20,000, where one of ``sampled`` costs 66 µs
FULL_CATALOGUE = 10_000
#: the losses that look at sampled items
SAMPLED = ("sampled", "gbce")

#: ``draw(rows [B]) -> negatives [B, n]``
DrawNegatives = Callable[[Tensor], Tensor]


def left_out_of_answers(settings: NetworkSettings, data: StudentData, texts: bool = False) -> Tensor | None:
    """Which items no target is compared with: those that are never a target of training, where their texts score them.

    That such an item was never right says no more than that nobody had met it, and a loss over the catalogue would
    learn from every row that it is wrong.

    Args:
        settings: whether they are wrong answers all the same.
        data: the training rows, and the prior, which may read texts.
        texts: whether something else scores an item from its text.

    Returns:
        ``[V]``, what is added to the logarithm of an item's weight: -inf or 0. None where nothing is left out.
    """
    unseen = data.item_counts == 0
    reads = texts or (settings.prior != "none" and data.prior is not None and data.prior.settings.reads_text)
    if settings.unseen_negatives or not reads or not bool(unseen.any()):
        return None
    return data.propensity.new_zeros(len(unseen)).masked_fill(unseen, float("-inf"))


def negative_sampler(
    data: StudentData, count: int, generator: torch.Generator, left_out: Tensor | None = None
) -> DrawNegatives:
    """Negatives uniform over the items that are neither in the row's window of history nor its target.

    Args:
        data: training rows.
        count: negatives a row.
        generator: draws them.
        left_out: see `left_out_of_answers`: -inf for items that are not drawn, unless too few are left.
    """
    among = None if left_out is None else torch.nonzero(left_out == 0).squeeze(1)
    if among is None or len(among) <= data.train.window + 1:  # or a row might have no negative
        return _Negatives(data, count, generator)
    # items get numbers without gaps; what is not drawn has the number behind them, as padding has
    number = among.new_full((data.num_items + 1,), len(among))
    number[among] = torch.arange(len(among), device=among.device)
    return _Negatives(data, count, generator, number, among)


@dataclass(frozen=True, eq=False)
class _Negatives:
    """No function: what it draws for the members of a population is computed for all of them at once."""

    data: StudentData
    count: int
    generator: torch.Generator
    #: where some items alone are drawn: the number of each item among them, ``[V + 1]``, and these items
    number: Tensor | None = None
    among: Tensor | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        """``[B, count]`` of rows ``[B]``."""
        train = self.data.train
        history, _ = train.read(rows)
        target = train.target[rows]
        if self.number is None or self.among is None:
            return draw_negatives(history, target, self.data.num_items, self.count, self.generator)
        number, count = self.number, len(self.among)
        return self.among[draw_negatives(number[history], number[target], count, self.count, self.generator)]


def resolve_loss(settings: NetworkSettings, num_items: int) -> NetworkSettings:
    """The settings with the loss that ``auto`` means for this catalogue.

    Raises:
        ConfigError: there are fewer items than shared negatives.
    """
    if settings.loss == "auto":
        settings = replace(settings, loss="ce" if num_items <= FULL_CATALOGUE else "sampled")
    if settings.loss in SAMPLED and settings.shared_negatives > num_items:
        rule = f"is more than the {num_items} items of this catalogue"
        step = f"set it to at most {num_items}, or student.loss=ce"
        raise ConfigError.one("student.shared_negatives", settings.shared_negatives, rule, step)
    return settings


def shared_sampler(
    data: StudentData, settings: NetworkSettings, seed: int
) -> tuple[DrawShared, torch.Generator] | None:
    """What draws the negatives that rows share, and its stream; None for a loss that has none.

    Args:
        data: training rows, whose targets say how often an item is drawn.
        settings: the loss, and how many are drawn.
        seed: the run's.
    """
    if settings.loss not in SAMPLED:
        return None
    # where the student is: what is drawn on the host would be waited for in every step
    stream = torch_generator(seed, "shared negatives", device=data.device)
    return Proposal(data.item_counts, settings.shared_negatives, settings.negatives_power, stream), stream


def column_prior_scores(student: SequenceStudent, data: StudentData, rows: Tensor, columns: Columns) -> Tensor | None:
    """As `train_prior_scores`, of the items that a step looks at, ``[B, M]``."""
    if student.prior is None or data.prior is None:
        return None
    return data.prior.of_items(data.prior.train, rows, columns.items)


def train_prior_scores(student: SequenceStudent, data: StudentData, rows: Tensor) -> Tensor | None:
    """What the prior says about training rows, out of fold, ``[B, V]``; None for a student without a prior.

    Args:
        student: who may have a prior.
        data: its training rows.
        rows: row numbers ``[B]``.
    """
    return None if student.prior is None or data.prior is None else data.prior.of(data.prior.train, rows)


class StudentObjective:
    """main + ``dro_weight`` · DRO over rows of the training split."""

    def __init__(
        self,
        model: SequenceStudent,
        data: StudentData,
        settings: NetworkSettings,
        draw: DrawNegatives,
        shared: DrawShared | None = None,
        shared_passes: SharedPasses | None = None,
        left_out: Tensor | None = None,
    ) -> None:
        """Rows of ``data`` for a student.

        Args:
            model: the student.
            data: the training rows.
            settings: the loss.
            draw: draws negatives for BCE.
            shared: draws the negatives of a loss in `SAMPLED`.
            shared_passes: how rows share passes; None: each has its own.
            left_out: see `left_out_of_answers`.
        """
        self.shared_passes, self.left_out = shared_passes, left_out
        self.model, self.data, self.settings, self.draw, self.shared = model, data, settings, draw, shared

    def loss(self, rows: Tensor) -> Tensor:
        """Mean loss of these training rows."""
        train, settings = self.data.train, self.settings
        target = train.target[rows]
        if self.shared_passes is None:
            representation = self.model.encode(*train.read(rows, self.model.window))
        else:
            representation = represent_rows(self.model, self.shared_passes, train, rows)
        if self.shared is not None:
            columns = Columns.of(target.unsqueeze(1), self.shared(), representation.dtype)
            return self._of_columns(representation, rows, columns)
        prior = train_prior_scores(self.model, self.data, rows)
        if settings.loss == "bce" and settings.dro_weight == 0:
            return sampled_bce(self.model, representation, target, self.draw(rows), prior)
        logits = self.model.logits(representation, prior)
        negatives = self.draw(rows) if settings.loss == "bce" else None
        loss = main_loss(logits, target, settings, negatives, self.left_out)
        if settings.dro_weight > 0:
            terms = dro_terms(logits, self.data.propensity, settings.dro_beta)
            loss = loss + settings.dro_weight * dro_at(terms, target.unsqueeze(1)).mean()
        return loss

    def _of_columns(self, representation: Tensor, rows: Tensor, columns: Columns) -> Tensor:
        settings, data = self.settings, self.data
        prior = column_prior_scores(self.model, data, rows, columns)
        logits = self.model.column_logits(representation, columns, prior)
        loss = column_loss(logits, columns, settings, data.num_items, columns.weight_of_answers(self.left_out))
        if settings.dro_weight > 0:
            terms = dro_terms(logits, data.propensity[columns.items], settings.dro_beta, columns.log_weight)
            loss = loss + settings.dro_weight * dro_at(terms, columns.first[:, :1]).mean()
        return loss


def column_loss(
    logits: Tensor, columns: Columns, settings: NetworkSettings, num_items: int, log_weight: Tensor | None = None
) -> Tensor:
    """The main loss over a step's columns ``[B, M]``, of which the first is the target's.

    Args:
        logits: ``[B, M]``.
        columns: which items they are, and how many each stands for.
        settings: which loss.
        num_items: V.
        log_weight: takes the place of the columns' own, ``[B, M]``.
    """
    target = columns.first[:, 0]
    weight = columns.log_weight if log_weight is None else log_weight
    if settings.loss == "sampled":
        return sampled_ce(logits, weight, target)
    rate = settings.shared_negatives / num_items
    return gbce_loss(logits, weight, target, rate, settings.gbce_calibration)


def sampled_bce(
    model: SequenceStudent, representation: Tensor, target: Tensor, negatives: Tensor, prior: Tensor | None = None
) -> Tensor:
    """BCE of the target against ``negatives`` ``[B, n]`` without the rest of the catalogue.

    Args:
        model: the student.
        representation: ``[B, R]``.
        target: ``[B]``.
        negatives: ``[B, n]``.
        prior: the prior's scores ``[B, V]``; None where there is none.
    """
    scores = model.score_items(representation, torch.cat([target.unsqueeze(1), negatives], dim=1), prior)
    return bce_loss(scores[:, 0], scores[:, 1:])


def main_loss(
    logits: Tensor,
    target: Tensor,
    settings: NetworkSettings,
    negatives: Tensor | None,
    log_weight: Tensor | None = None,
) -> Tensor:
    """CE over the catalogue, or BCE of the target against ``negatives`` ``[B, n]`` (which BCE needs).

    Args:
        logits: ``[B, V]``.
        target: ``[B]``.
        settings: which loss.
        negatives: drawn items; None: CE.
        log_weight: ``[V]``, what is added to each item's logit in the sum of CE: -inf leaves it out; None: 0.
    """
    if settings.loss == "ce" or negatives is None:
        return ce_loss(logits, target) if log_weight is None else sampled_ce(logits, log_weight, target)
    return bce_loss(logits.gather(1, target.unsqueeze(1)).squeeze(1), logits.gather(1, negatives))
