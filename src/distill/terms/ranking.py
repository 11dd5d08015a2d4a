"""Importance-aware ranking distillation over the teacher's candidates (golden §1d-e)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from src.core.errors import Problem
from src.core.settings import STRICT
from src.distill.kd_losses import (
    confidence_weights,
    consistency_weights,
    importance_weights,
    position_weights,
    ranking_bce,
    weighted_bce,
    weighted_dro,
)
from src.distill.terms.base import Step, Term
from src.student.losses import dro_at
from src.student.settings import NetworkSettings

if TYPE_CHECKING:
    from src.distill.settings import DistillSettings


@dataclass(frozen=True, config=STRICT)
class RankingSettings:
    """The teacher's ranking, each candidate weighted by position, confidence and consistency."""

    lam: Annotated[float, Field(ge=0, description="weight of importance-aware ranking distillation")] = 0.5
    ranking_loss_weight: Annotated[float, Field(ge=0, description="a second factor on lam's term")] = 1.0
    temperature: Annotated[
        float,
        Field(
            gt=0,
            description="tau: confidence weights are e^(-d/tau), and a policy compares e^(-d/tau); 1.0 is as published",
        ),
    ] = 1.0
    candidate_topk: Annotated[
        int, Field(ge=1, description="K, the teacher's candidates that are distilled, by every term that reads labels")
    ] = 10
    gamma_position: Annotated[float, Field(ge=0, description="share of the position weight")] = 0.3
    gamma_confidence: Annotated[float, Field(ge=0, description="share of the confidence weight")] = 0.5
    gamma_consistency: Annotated[float, Field(ge=0, description="share of the consistency weight")] = 0.1
    dro_weighting: Annotated[
        Literal["per_sample", "product"],
        Field(description="each candidate's weight times its own DRO, or mean weight times mean DRO (as released)"),
    ] = "per_sample"
    ranking_negative: Annotated[
        Literal["one_minus_sigmoid", "sigmoid_of_one_minus"],
        Field(description="the ranking term's negative: 1 - sigma(x), or sigma(1 - x) (as released)"),
    ] = "one_minus_sigmoid"

    def __post_init__(self) -> None:
        if self.lam > 0 and self.gamma_position + self.gamma_confidence + self.gamma_consistency == 0:
            raise ValueError("distill.gamma_position, gamma_confidence and gamma_consistency must not all be 0")


class Ranking(Term):
    """``lam`` · ``ranking_loss_weight`` · Σ over candidates of weight · (BCE + ``alpha`` · DRO)."""

    name, arm, title = "ranking", "ranking", "student + ranking"
    Settings, switches, order = RankingSettings, ("lam",), 20
    reads_labels = reads_negatives = True
    shared = ("candidate_topk", "temperature")
    also_needs = {"dro_weighting": "alpha"}

    def is_on(self, settings: DistillSettings) -> bool:
        """Both factors count."""
        return bool(settings.lam * settings.ranking_loss_weight > 0)

    def problems(self, settings: DistillSettings, student: NetworkSettings) -> list[Problem]:
        """Every term is a mean over rows, and so of micro-batches, but for ``product``: a product of
        two means over the batch is another number when the batch is cut."""
        loop = student.loop
        cut = 0 < loop.micro_batch_size < loop.batch_size
        if settings.dro_weighting != "product" or settings.alpha == 0 or not (cut or loop.adapt_micro_batch):
            return []
        name = "micro_batch_size" if cut else "adapt_micro_batch"
        rule = "distill.dro_weighting=product multiplies means over a whole batch: in parts it is another loss"
        step = f"set student.loop.{name}={0 if cut else 'false'}, or distill.dro_weighting=per_sample"
        return [Problem(f"student.loop.{name}", getattr(loop, name), rule, step)]

    def loss(self, step: Step) -> Tensor:
        """Summed over the candidates, each row divided by B."""
        settings, logits = step.settings, step.logits
        candidates, distances = step.ranking
        favourites = step.ranked_high(candidates.shape[1])
        weights = ranking_weights(logits.detach(), candidates, distances, settings, favourites)
        negative = logits.gather(1, step.negatives[:, :1]).squeeze(1)
        bce = ranking_bce(logits.gather(1, candidates), negative, settings.ranking_negative)
        total = weighted_bce(weights, bce, step.taught)
        if settings.alpha > 0:
            dro = weighted_dro(weights, dro_at(step.dro, candidates), step.taught, settings.dro_weighting)
            total = total + settings.alpha * dro
        factor: float = settings.lam * settings.ranking_loss_weight
        return factor * total.sum()


def ranking_weights(
    logits: Tensor,
    candidates: Tensor,
    distances: Tensor,
    settings: DistillSettings,
    favourites: Tensor | None = None,
) -> Tensor:
    """Mix position, confidence and consistency of each candidate.

    Args:
        logits: ``[B, V]``, detached.
        candidates: ``[B, K]``.
        distances: ``[B, K]``.
        settings: the shares γ and the temperature.
        favourites: see `consistency_weights`.

    Returns:
        ``[B, K]``.
    """
    return importance_weights(
        position_weights(candidates.shape[1], distances),
        confidence_weights(distances, settings.temperature),
        consistency_weights(candidates, logits, favourites),
        (settings.gamma_position, settings.gamma_confidence, settings.gamma_consistency),
    )


TERM = Ranking()
