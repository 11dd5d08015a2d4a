"""A population's members train as they would alone: the same losses at every step, with every number of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from src.core.loop_settings import LoopSettings
from src.core.population import Member, Population
from src.core.training import AloneStep, Fitting
from src.distill.data_bridge import TeachingRows, align
from src.distill.settings import ActiveSettings, DistillSettings
from src.distill.trainer_distill import prepare_distilled
from src.student.datamodule import StudentData
from src.student.models import student_settings as settings_for
from src.student.prior import fit_prior
from src.student.settings import EvaluationSettings
from src.student.trainer_baseline import prepare_student
from tests.fixtures import cycle_data, outputs_for, student_of

EVALUATION = EvaluationSettings(ks=(5,))
ROWS, BATCH = 100, 16  # seven steps an epoch, the last one on four rows
EPOCHS, FEWER = 29, 9  # 203 steps, and 63 where a step takes long

#: everything that a population may vary, three members
DISTILL: list[dict[str, Any]] = [
    {"lam": 0.3, "alpha": 0.1, "ed_weight": 0.2, "temperature": 0.5, "beta": 1.0, "soft_weight": 0.2},
    {"lam": 0.9, "alpha": 0.4, "ed_weight": 0.7, "temperature": 2.0, "beta": 0.7, "soft_weight": 0.9},
    {"lam": 0.1, "alpha": 0.2, "ed_weight": 0.1, "temperature": 1.0, "beta": 2.0, "soft_weight": 0.5},
]
STUDENT: list[dict[str, Any]] = [
    {"learning_rate": 0.01, "weight_decay": 1e-4, "dropout": 0.1},
    {"learning_rate": 0.003, "weight_decay": 1e-3, "dropout": 0.3},
    {"learning_rate": 0.02, "weight_decay": 1e-5, "dropout": 0.2},
]
#: the other terms, and the published form of the ranking term
OTHERS: list[dict[str, Any]] = [
    {"text_weight": 0.4, "text_dropout": 0.5, "rce_weight": 0.3, "embedding_loss_weight": 0.2, "gamma_position": 0.2},
    {"text_weight": 0.9, "text_dropout": 0.2, "rce_weight": 0.8, "embedding_loss_weight": 0.6, "gamma_position": 0.7},
    {"text_weight": 0.2, "text_dropout": 0.9, "rce_weight": 0.1, "embedding_loss_weight": 0.1, "gamma_position": 0.1},
]
RELEASED: dict[str, Any] = {
    "dro_weighting": "product", "ranking_negative": "sigmoid_of_one_minus", "embedding_loss_weight": 0.3,
    "embedding_loss": "cosine", "text_start": 0.5,
}  # fmt: skip
KL = [ActiveSettings(policy="kl_divergence", kl_threshold=threshold) for threshold in (0.1, 0.3, 0.05)]
RANKS = [ActiveSettings(policy="ground_truth_error", rank_threshold=rank) for rank in (1, 2, 3)]


@pytest.fixture(autouse=True)
def in_float64() -> Iterator[None]:
    """Rounding is not what is looked at."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def data() -> StudentData:
    made = StudentData.of(cycle_data(train=ROWS), "cpu")
    return replace(made, prior=fit_prior(settings_for("linear"), made.train, made.validation, made.num_items, 2, 0))


@pytest.fixture(scope="module")
def teaching() -> TeachingRows:
    train = cycle_data(train=ROWS).train
    found = align(outputs_for(train, np.arange(0, ROWS, 2)), train, 4, "cpu")
    sequence = found.sequence_embedding.double()
    return replace(found, item_embedding=found.item_embedding.double(), sequence_embedding=sequence)


def loop(epochs: int = EPOCHS, **changes: Any) -> LoopSettings:
    return LoopSettings(**{"epochs": epochs, "batch_size": BATCH, "monitor": "ndcg_5", "patience": 99, **changes})


def fit_of(
    place: int, data: StudentData, teaching: TeachingRows | None, active: ActiveSettings, asked: Mapping[str, Any]
) -> Fitting:
    """A member's fit; without a teacher's rows that of a student alone. ``terms`` and ``epochs`` of what is asked are
    not the student's."""
    student = {key: value for key, value in asked.items() if key not in ("terms", "epochs")}
    architecture, epochs = student.get("architecture", "transformer"), asked.get("epochs", EPOCHS)
    own = {**STUDENT[place], "width": 8, "loop": loop(epochs, ema=(0.9, 0.95, 0.8)[place]), "prior": "none", **student}
    settings = student_of(architecture, **{key: value for key, value in own.items() if key != "architecture"})
    if teaching is None:
        return prepare_student(settings, EVALUATION, data, seed=place)[1]
    terms = asked.get("terms", [{}] * 3)[place]
    distill = DistillSettings(**{**DISTILL[place], **terms}, candidate_topk=4)
    model, fit = prepare_distilled(settings, distill, active, EVALUATION, data, teaching, seed=place)
    model.double()  # what is made of the texts is float32
    return fit


def losses_alone(fit: Fitting) -> list[float]:
    """Of every step."""
    step, run, losses = AloneStep(fit), fit.steps(), list[float]()
    try:
        rows = next(run)
        while True:
            loss = step(rows)
            losses.append(float(loss))
            rows = run.send(loss)
    except StopIteration:
        return losses


class Noted(Population):
    """Keeps the losses of every member."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: dict[Member, list[float]] = {}

    def step(self, members: Any) -> Any:
        """As the population's."""
        losses = super().step(members)
        for member, loss in zip(members, losses, strict=True):
            self.losses.setdefault(member, []).append(float(loss))
        return losses


def train(population: Population, members: list[Member]) -> None:
    """To the end."""
    for member in members:
        member.advance()
    while any(member.rows is not None for member in members):
        population.epoch(members)


@pytest.mark.parametrize(
    ("taught", "policies", "student"),
    [
        (True, KL, {}),
        (True, RANKS, {"architecture": "sasrec", "loss": "bce"}),
        (
            True,
            KL,
            {"blocks": 2, "tied": False, "loop": loop(FEWER, gradient_clip=0.5, micro_batch_size=12), "epochs": FEWER},
        ),
        (True, KL, {"prior": "linear", "terms": OTHERS, "epochs": FEWER}),
        (True, RANKS, {"architecture": "sasrec", "terms": [RELEASED] * 3, "epochs": FEWER}),
        (True, KL, {"prior": "linear"}),  # whose gain is a weight that is a number
        (False, KL, {"prior": "linear"}),
        (False, KL, {"loss": "bce", "negatives": 3}),
        (False, KL, {"architecture": "caser", "filter_sizes": (2, 3), "num_filters": 3, "dro_weight": 0.3}),
    ],
    ids=[
        "transformer",
        "sasrec-bce-ranks",
        "blocks-clip-parts",
        "others",
        "released",
        "prior",
        "alone-prior",
        "alone-bce",
        "caser-dro",
    ],
)
def test_the_losses_of_all_steps_are_those_of_each_member_alone(
    taught: bool, policies: list[ActiveSettings], student: dict[str, Any], data: StudentData, teaching: TeachingRows
) -> None:
    def fits() -> Iterator[Fitting]:
        return (fit_of(place, data, teaching if taught else None, policies[place], student) for place in range(3))

    lone = [(fit, losses_alone(fit)) for fit in fits()]
    members, population = [Member(fit) for fit in fits()], Noted()
    train(population, members)
    assert population.in_turns == ""
    for member, (fit, losses) in zip(members, lone, strict=True):
        assert len(losses) == 7 * student.get("epochs", EPOCHS)
        np.testing.assert_allclose(population.losses[member], losses, rtol=0, atol=1e-5)
        assert member.result is not None
        assert [epoch["ndcg_5"] for epoch in member.result.history] == pytest.approx(
            [epoch["ndcg_5"] for epoch in fit.progress.history]
        )
        if taught:
            shares = [epoch["taught_share"] for epoch in member.result.history]
            assert shares == [epoch["taught_share"] for epoch in fit.progress.history]
            assert len(set(shares)) > 1
