"""How knowledge is distilled, and which labelled rows are taught."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from src.core.errors import Problem
from src.core.settings import STRICT

if TYPE_CHECKING:
    from src.core.training import LoopSettings


@dataclass(frozen=True, config=STRICT)
class DistillSettings:
    """loss = ce_loss_weight·main + alpha·DRO + lam·ranking_loss_weight·ranking + embedding_loss_weight·embedding."""

    lam: Annotated[float, Field(ge=0, description="weight of importance-aware ranking distillation")] = 0.5
    alpha: Annotated[float, Field(ge=0, description="weight of DRO, of the target's and of each candidate's")] = 0.1
    ed_weight: Annotated[
        float, Field(ge=0, description="weight of the projected LLM item embeddings in the student's input")
    ] = 0.2
    temperature: Annotated[
        float, Field(gt=0, description="tau: confidence weights are e^(-d/tau); 1.0 is as published")
    ] = 1.0
    candidate_topk: Annotated[int, Field(ge=1, description="K, the teacher's candidates that are distilled")] = 10
    beta: Annotated[float, Field(gt=0, description="beta, the temperature inside DRO")] = 1.0
    gamma_position: Annotated[float, Field(ge=0, description="share of the position weight")] = 0.3
    gamma_confidence: Annotated[float, Field(ge=0, description="share of the confidence weight")] = 0.5
    gamma_consistency: Annotated[float, Field(ge=0, description="share of the consistency weight")] = 0.1
    ce_loss_weight: Annotated[float, Field(ge=0, description="weight of the main loss (CE or BCE: student.loss)")] = 1.0
    ranking_loss_weight: Annotated[float, Field(ge=0, description="a second factor on lam's term")] = 1.0
    embedding_loss_weight: Annotated[
        float, Field(ge=0, description="weight of the output-level embedding loss; 0: off")
    ] = 0.0
    embedding_loss: Annotated[
        Literal["mse", "cosine"], Field(description="distance of the output-level embedding loss")
    ] = "mse"
    dro_weighting: Annotated[
        Literal["per_sample", "product"],
        Field(description="each candidate's weight times its own DRO, or mean weight times mean DRO (as released)"),
    ] = "per_sample"
    ranking_negative: Annotated[
        Literal["one_minus_sigmoid", "sigmoid_of_one_minus"],
        Field(description="the ranking term's negative: 1 - sigma(x), or sigma(1 - x) (as released)"),
    ] = "one_minus_sigmoid"
    outputs_from: Annotated[
        Path | None,
        Field(description="folder of finished teacher outputs or of DLLM2Rec's three files; null: train a teacher"),
    ] = None

    def __post_init__(self) -> None:
        if self.lam > 0 and self.gamma_position + self.gamma_confidence + self.gamma_consistency == 0:
            raise ValueError("distill.gamma_position, gamma_confidence and gamma_consistency must not all be 0")

    @property
    def needs_ranking(self) -> bool:
        """Whether the teacher's rankings are read."""
        return self.lam * self.ranking_loss_weight > 0


def micro_batch_problem(settings: DistillSettings, loop: LoopSettings) -> Problem | None:
    """What is wrong with accumulating gradients under these settings; None where it gives the whole batch's loss.

    Every term is a mean over rows, and so the mean of its micro-batches' means, but for ``dro_weighting=product``: a
    product of two means over the batch is another number when the batch is cut.
    """
    reads_product = settings.dro_weighting == "product" and settings.alpha > 0 and settings.needs_ranking
    cut = 0 < loop.micro_batch_size < loop.batch_size
    if not reads_product or not (cut or loop.adapt_micro_batch):
        return None
    name = "micro_batch_size" if cut else "adapt_micro_batch"
    rule = "distill.dro_weighting=product multiplies means over a whole batch: in parts it is another loss"
    step = f"set student.loop.{name}={0 if cut else 'false'}, or distill.dro_weighting=per_sample"
    return Problem(f"student.loop.{name}", getattr(loop, name), rule, step)


@dataclass(frozen=True, config=STRICT)
class ActiveSettings:
    """Which labelled rows are taught in a step."""

    policy: Annotated[
        str,
        Field(
            pattern=r"^(all|kl_divergence|ground_truth_error|[\w.]+:\w+)$",
            description="all labelled rows; kl_divergence: where teacher and student disagree; ground_truth_error: "
            "where the student errs; package.module:factory: a policy of your own",
        ),
    ] = "all"
    kl_threshold: Annotated[
        float, Field(ge=0, description="kl_divergence: least KL(teacher || student) in nats that is taught")
    ] = 0.1
    rank_threshold: Annotated[
        int, Field(ge=0, description="ground_truth_error: rows whose target ranks worse than this are taught")
    ] = 20
