"""`dllm2rec_loss` and `dllm2rec_eval`: every published term, the composed objective with its gradients, the metrics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from src.core.metrics import summarise, target_ranks
from src.data.examples import Examples
from src.data.teacher_outputs import TeacherOutputs
from src.data.tensor_examples import TensorExamples
from src.distill.data_bridge import TeachingRows, align
from src.distill.kd_losses import (
    confidence_weights,
    consistency_weights,
    position_weights,
    ranking_bce,
    weighted_bce,
    weighted_dro,
)
from src.distill.parts import TaughtStudent
from src.distill.selection_policy import TeachAll
from src.distill.settings import DistillSettings
from src.distill.terms.ranking import ranking_weights
from src.distill.trainer_distill import DistillObjective
from src.student.datamodule import StudentData
from src.student.losses import dro_at, dro_terms, propensity
from src.student.objectives import main_loss
from tests.fixtures import student_of
from tests.golden.sources import FLOAT32_LOSS, FLOAT64, PRECISIONS, Arrays, Sources, require

_TOLERANCE = {"f64": FLOAT64, "f32": FLOAT32_LOSS}
_BCE = student_of(loss="bce", negatives=1)
#: README §1e: "reference" is the released [B, 1] x [B] product, "intended" its per-sample reading
_WEIGHTING = {"reference": "product", "intended": "per_sample"}


class _Transparent(nn.Module):
    """A student whose representation already is its logits."""

    window, prior = 1, None

    def score_items(self, representation: Tensor, items: Tensor, prior_scores: None) -> Tensor:
        """Logits of a few items a row."""
        return representation.gather(1, items)


class FixedLogits(nn.Module):
    """Stands where a distilled student stands, and always says the same: row b's logits are a parameter."""

    has_output_parts = False

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(logits.clone())
        self.student = _Transparent()

    def represent(self, history: Tensor, length: Tensor) -> Tensor:
        """``[B, V]``; a row's history holds nothing but its number."""
        return self.table[history[:, 0]]

    def logits(self, representation: Tensor, prior_scores: None) -> Tensor:
        """``[B, V]``: what `represent` gave."""
        return representation


def _settings(io: Arrays, weighting: str, alpha: float, lam: float) -> DistillSettings:
    """The published loss, as the case's hyper-parameters set it."""
    return DistillSettings(
        lam=lam,
        alpha=alpha,
        ed_weight=0.0,
        temperature=1.0,
        candidate_topk=io.whole("hp.candidate_topk"),
        beta=io.number("hp.beta"),
        gamma_position=io.number("hp.gamma_position"),
        gamma_confidence=io.number("hp.gamma_confidence"),
        gamma_consistency=io.number("hp.gamma_consistency"),
        dro_weighting=cast(Any, _WEIGHTING[weighting]),
        ranking_negative="sigmoid_of_one_minus",
    )


def _teaching(io: Arrays, dtype: torch.dtype, num_items: int) -> TeachingRows:
    """The case's rankings through the shipped alignment, every row labelled."""
    rows = len(io["in.candidates"])
    numbers, nothing = np.arange(rows), np.zeros((rows, 0), np.float32)
    distances = io["in.confidences"].numpy()
    examples = Examples.of_rows(
        numbers, numbers, numbers[:, None], np.ones(rows, np.int64), numbers, numbers.astype(float)
    )
    outputs = TeacherOutputs(
        numbers, io["in.candidates"].numpy(), -distances, distances, nothing, np.zeros((num_items, 1), np.float32), {}
    )
    teaching = align(outputs, examples, io.whole("hp.candidate_topk"), "cpu")
    return replace(teaching, distances=teaching.distances.to(dtype))


def _objective(io: Arrays, settings: DistillSettings, dtype: torch.dtype) -> DistillObjective:
    """The shipped objective over the case's logits."""
    logits, target = io["in.model_output"].to(dtype), io["in.target"]
    numbers = torch.arange(len(target))
    train = TensorExamples.of_rows(numbers.unsqueeze(1), torch.ones_like(numbers), target, numbers)
    data = StudentData(train, train, logits.shape[1], 1, io["in.ps"].to(dtype), torch.zeros(logits.shape[1]))
    model = cast(TaughtStudent, FixedLogits(logits))
    teaching = _teaching(io, dtype, logits.shape[1])
    negatives = io["in.target_neg"]
    return DistillObjective(model, data, teaching, _BCE, settings, TeachAll(), lambda rows: negatives[rows])


def _loss_and_gradient(io: Arrays, settings: DistillSettings, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    objective = _objective(io, settings, dtype)
    loss = objective.loss(torch.arange(len(io["in.target"])))
    (gradient,) = torch.autograd.grad(loss, list(objective.model.parameters()))
    return loss, gradient


def check_loss_case(sources: Sources, file: Path) -> None:
    """One batch: each term from the pure functions, the totals and gradients from the shipped objective."""
    io = sources.arrays(file)
    io.expect("in.ps", propensity(io["in.item_counts"]), FLOAT64)
    for prefix, dtype in PRECISIONS.items():
        _check_terms(io, prefix, dtype)
        _check_totals(io, prefix, dtype)


def _check_terms(io: Arrays, prefix: str, dtype: torch.dtype) -> None:
    x, target, p = io["in.model_output"].to(dtype), io["in.target"], io["in.ps"].to(dtype)
    negatives, alpha, lam = io["in.target_neg"], io.number("hp.alpha"), io.number("hp.lam")

    def expect(name: str, got: Tensor) -> None:
        io.expect(f"{prefix}.{name}", got, _TOLERANCE[prefix])

    expect("bce", main_loss(x, target, _BCE, negatives))
    terms = dro_terms(x, p, io.number("hp.beta")) if alpha else None
    if terms is not None:
        own = dro_at(terms, target.unsqueeze(1)).squeeze(1)
        expect("dro_per_sample", own)
        expect("dro_mean", own.mean())
    betas = [dro_at(dro_terms(x, p, beta), target.unsqueeze(1)).squeeze(1) for beta in io["beta.values"].tolist()]
    io.expect(f"beta.{prefix}.dro_per_sample", torch.stack(betas), _TOLERANCE[prefix])
    if not lam:
        return
    candidates, distances = _teaching(io, dtype, x.shape[1]).ranking(torch.arange(len(x)))
    expect("weight_position", position_weights(candidates.shape[1], distances).expand(candidates.shape))
    expect("weight_confidence", confidence_weights(distances))
    expect("weight_common", consistency_weights(candidates, x))
    weights = ranking_weights(x, candidates, distances, _settings(io, "reference", alpha, lam))
    expect("weight_final", weights)
    bce = ranking_bce(x.gather(1, candidates), x.gather(1, negatives).squeeze(1), "sigmoid_of_one_minus")
    expect("rd_bce", bce)
    everyone = torch.ones(len(x), dtype=dtype)
    for reading, weighting in _WEIGHTING.items():
        total = weighted_bce(weights, bce, everyone)
        if terms is not None:
            dro = dro_at(terms, candidates)
            expect("rd_dro", dro)
            total = total + alpha * weighted_dro(weights, dro, everyone, weighting)
        expect(f"rd_terms_{reading}", total)
        expect(f"rd_sum_{reading}", total.sum())


def _check_totals(io: Arrays, prefix: str, dtype: torch.dtype) -> None:
    alpha, lam = io.number("hp.alpha"), io.number("hp.lam")
    for reading, suffix in (("reference", ""), ("intended", "_intended")):
        tolerance = _TOLERANCE[prefix]
        if reading == "reference" or lam:
            loss, gradient = _loss_and_gradient(io, _settings(io, reading, alpha, lam), dtype)
            io.expect(f"{prefix}.loss_all{suffix}", loss, tolerance)
            io.expect(f"{prefix}.grad_loss_all{suffix}", gradient, tolerance)
        combos = [
            _loss_and_gradient(io, _settings(io, reading, *pair), dtype)[0].detach()
            for pair in io["combo.alpha_lam"].tolist()
        ]
        io.expect(f"combo.{prefix}.loss_all{suffix}", torch.stack(combos), tolerance)


def check_propensity(sources: Sources, file: Path) -> None:
    """Propensities from lists of training targets."""
    cases = sources.json(file)
    for name in cases:
        case = cases.inside(name)
        num_items, targets, _ = case.whole_number("item_num"), case["next"], case["note"]
        # our data room refuses ids outside the catalogue and reads text as numbers, so both are sorted out here: the
        # published counter finds neither in its bins
        counted = [int(target) for target in targets if not isinstance(target, str) and 0 <= target < num_items]
        counts = torch.bincount(torch.tensor(counted, dtype=torch.int64), minlength=num_items)
        got, want = propensity(counts), torch.tensor(case["ps"], dtype=torch.float64)
        require(got.shape == want.shape and bool(((got - want).abs() <= FLOAT64).all()), f"{case.label}: ps")


_NEVER = 2**40


def check_eval(sources: Sources, file: Path, notes: Path | None) -> None:
    """Ranks, hit ratio and NDCG of each case."""
    io = sources.arrays(file)
    cutoffs = io["topk"].tolist()
    names = [name.removesuffix(".scores") for name in io.names() if name.endswith(".scores")]
    if notes is not None:
        remarks = sources.json(notes)
        require(all(isinstance(remarks[name], str) for name in remarks), f"{notes.name} holds remarks only")
    for name in names:
        scores, targets = io[f"{name}.scores"], io[f"{name}.targets"]
        known = (targets >= 0) & (targets < scores.shape[1])
        ranks = torch.full_like(targets, _NEVER)
        ranks[known] = target_ranks(scores[known], targets[known])
        io.expect(f"{name}.rank", torch.where(known, ranks, -1), 0.0)
        released = [_released_metrics(ranks, k, scores.shape[1]) for k in cutoffs]
        for place, metric in enumerate(("hr", "ndcg")):
            got = torch.tensor([values[place] for values in released], dtype=torch.float64)
            io.expect(f"{name}.{metric}", got, FLOAT64)


def _released_metrics(ranks: Tensor, k: int, num_items: int) -> tuple[float, float]:
    """Our hit ratio and NDCG at k, of the ranks that the released evaluation would have seen.

    It asks for the k best of fewer items and then counts from the wrong end: each rank becomes rank + (k - V).
    Ours does not; where k ≤ V both agree.
    """
    metrics = summarise(ranks + max(k - num_items, 0), (k,))
    return metrics[f"hit_ratio_{k}"], metrics[f"ndcg_{k}"]
