"""The whole distillation loss, and what it must be without distillation: the baseline, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import src.distill.terms.base as terms
from src.core.checkpoints import Checkpoint, NoCheckpoint
from src.core.errors import ConfigError
from src.core.training import LoopSettings
from src.data.examples import SealedExamples
from src.distill.data_bridge import TeachingRows, align
from src.distill.selection_policy import SelectionContext, TeachAll
from src.distill.settings import ActiveSettings, DistillSettings
from src.distill.settings import terms as all_terms
from src.distill.trainer_distill import DistillObjective, DistillRun, build_taught, train_distilled
from src.student.base import SequenceStudent
from src.student.datamodule import StudentData
from src.student.evaluator import evaluate_model
from src.student.losses import dro_at, dro_terms
from src.student.models import student_settings as student_settings_of
from src.student.prior import fit_prior
from src.student.settings import EvaluationSettings, StudentSettings
from src.student.trainer_baseline import new_student, train_student
from tests.dying import DyingCheckpoint, Killed
from tests.fixtures import NUM_ITEMS, cycle_data, outputs_for, student_of

EVALUATION = EvaluationSettings(ks=(1, 5))
NOTHING = DistillSettings(lam=0.0, alpha=0.0, ed_weight=0.0, candidate_topk=4)
LABELLED = np.array([30, 2, 17, 5, 8, 11, 39])


def student_settings(architecture: str = "sasrec", loss: str = "ce", **changes: Any) -> StudentSettings:
    """A small student with dropout, so that its random stream matters."""
    loop = LoopSettings(epochs=3, batch_size=16, monitor="ndcg_5")
    options: dict[str, Any] = {
        "width": 8,
        "dropout": 0.3,
        "loop": loop,
        "negatives": 2,
    }
    if architecture == "caser":
        options |= {"filter_sizes": (2, 3), "num_filters": 3}
    return student_of(**{**options, "architecture": architecture, "loss": loss, **changes})


@pytest.fixture(scope="module")
def data() -> StudentData:
    """Forty training rows over twelve items."""
    return StudentData.of(cycle_data(), "cpu")


@pytest.fixture(scope="module")
def teaching() -> TeachingRows:
    """Seven of the forty rows are labelled."""
    train = cycle_data().train
    return align(outputs_for(train, LABELLED), train, 4, "cpu")


@pytest.fixture(params=[1, 2])
def outer_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The number of threads that the caller happens to have."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def same_weights(first: SequenceStudent, second: SequenceStudent) -> bool:
    """Bit by bit."""
    left, right = first.state_dict(), second.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("loss", ["ce", "bce"])
@pytest.mark.parametrize("architecture", ["sasrec", "gru4rec", "caser"])
def test_without_distillation_it_is_the_baseline_to_the_last_bit(
    data: StudentData, teaching: TeachingRows, architecture: str, loss: str, outer_threads: int
) -> None:
    settings = student_settings(architecture, loss)
    baseline = train_student(settings, EVALUATION, data, seed=7)
    other_threads = 3 - outer_threads
    torch.set_num_threads(other_threads)  # what the caller has must not matter
    taught = train_distilled(settings, NOTHING, ActiveSettings(), EVALUATION, data, teaching, seed=7)
    ours = [{name: value for name, value in row.items() if name != "taught_share"} for row in taught.fit.history]
    assert ours == baseline.fit.history
    assert taught.fit.best_epoch == baseline.fit.best_epoch
    assert same_weights(taught.student, baseline.student)


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("loss", ["ce", "bce"])
@pytest.mark.parametrize("prior", ["none", "linear"])
@pytest.mark.parametrize("architecture", ["sasrec", "gru4rec", "caser", "transformer", "transformer, free rows"])
def test_every_student_without_distillation_is_its_baseline(
    data: StudentData, teaching: TeachingRows, architecture: str, prior: str, loss: str, ema: float
) -> None:
    """With and without a prior, a running mean, each loss: the first trial of every search."""
    name, _, free = architecture.partition(", ")
    own: dict[str, Any] = {"tied": not free, "window": 0} if name == "transformer" else {}
    loop = LoopSettings(epochs=2, batch_size=16, monitor="ndcg_5", ema=ema)
    settings = student_settings(name, loss, prior=prior, loop=loop, **own)
    if prior != "none":
        fitted = fit_prior(student_settings_of(prior), data.train, data.validation, NUM_ITEMS, 2, 0)
        data = replace(data, prior=fitted)
    baseline = train_student(settings, EVALUATION, data, seed=7)
    off: dict[str, Any] = {key: value for term in all_terms() for key, value in term.off(settings).items()}
    neutral = DistillSettings(**off, candidate_topk=4)
    taught = train_distilled(settings, neutral, ActiveSettings(), EVALUATION, data, teaching, seed=7)
    ours = [{name: value for name, value in row.items() if name != "taught_share"} for row in taught.fit.history]
    assert ours == baseline.fit.history
    assert isinstance(baseline.student, SequenceStudent)
    assert same_weights(taught.student, baseline.student)


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_with_the_baselines_dro_it_is_that_baseline_to_the_last_bit(
    data: StudentData, teaching: TeachingRows, loss: str
) -> None:
    settings = student_settings("sasrec", loss, dro_weight=0.3, dro_beta=2.0)
    baseline = train_student(settings, EVALUATION, data, seed=7)
    only_dro = replace(NOTHING, alpha=0.3, beta=2.0)
    taught = train_distilled(settings, only_dro, ActiveSettings(), EVALUATION, data, teaching, seed=7)
    assert [row["train_loss"] for row in taught.fit.history] == [row["train_loss"] for row in baseline.fit.history]
    assert same_weights(taught.student, baseline.student)


@pytest.mark.parametrize(
    "active",
    [ActiveSettings("all"), ActiveSettings("kl_divergence"), ActiveSettings("ground_truth_error")],
    ids=lambda active: active.policy,
)
def test_a_policy_alone_changes_nothing(data: StudentData, teaching: TeachingRows, active: ActiveSettings) -> None:
    settings = student_settings()
    taught = train_distilled(settings, NOTHING, active, EVALUATION, data, teaching, seed=7)
    assert same_weights(taught.student, train_student(settings, EVALUATION, data, seed=7).student)


@pytest.mark.parametrize(
    "change", [{"lam": 0.5}, {"alpha": 0.5}, {"ed_weight": 0.5}, {"embedding_loss_weight": 0.5}], ids=str
)
def test_each_part_changes_the_student(data: StudentData, teaching: TeachingRows, change: dict[str, Any]) -> None:
    settings = student_settings()
    baseline = train_student(settings, EVALUATION, data, seed=7)
    taught = train_distilled(settings, replace(NOTHING, **change), ActiveSettings(), EVALUATION, data, teaching, seed=7)
    assert not same_weights(taught.student, baseline.student)


def test_extra_parts_do_not_shift_the_students_own_random_stream(data: StudentData, teaching: TeachingRows) -> None:
    """The item input and the projection draw elsewhere: initial weights and the next dropout are the baseline's."""
    settings = student_settings()
    baseline = new_student(settings, data, 7)
    after_baseline = torch.rand(4)
    student = new_student(settings, data, 7)
    parts = replace(NOTHING, ed_weight=0.3, embedding_loss_weight=1.0)
    model = build_taught(student, parts, teaching, data, 7)
    assert torch.equal(torch.rand(4), after_baseline)
    assert same_weights(model.student, baseline)
    assert set(model.parts) == {"item_input", "output_projection"}
    assert model.parts["output_projection"].weight.shape == (3, 8)


def test_a_run_repeats_with_its_seed(data: StudentData, teaching: TeachingRows) -> None:
    full = replace(NOTHING, lam=0.7, alpha=0.3, ed_weight=0.2, embedding_loss_weight=0.1)
    first, again = (
        train_distilled(student_settings(), full, ActiveSettings(), EVALUATION, data, teaching, seed=3)
        for _ in range(2)
    )
    assert first.fit.history == again.fit.history
    assert same_weights(first.student, again.student)


def test_the_folded_student_needs_no_teacher_and_keeps_its_metrics(data: StudentData, teaching: TeachingRows) -> None:
    full = replace(NOTHING, lam=0.7, alpha=0.3, ed_weight=0.9)
    run = train_distilled(student_settings(), full, ActiveSettings(), EVALUATION, data, teaching, seed=3)
    metrics = evaluate_model(run.student, data.validation, EVALUATION)
    assert metrics == {name: run.fit.best_metrics[name] for name in metrics}
    plain = new_student(student_settings(), data, 0)
    assert run.student.state_dict().keys() == plain.state_dict().keys()


def test_the_test_split_is_never_opened(teaching: TeachingRows, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: SealedExamples, reason: str, record: Path) -> None:
        raise AssertionError("the test split was opened")

    monkeypatch.setattr(SealedExamples, "open", refuse)
    data = StudentData.of(cycle_data(), "cpu")
    train_distilled(student_settings(), replace(NOTHING, lam=0.5), ActiveSettings(), EVALUATION, data, teaching, seed=0)


def objective_of(
    data: StudentData, teaching: TeachingRows, settings: DistillSettings, loss: str = "ce"
) -> DistillObjective:
    """Dropout off, negatives fixed: the loss is a function of the rows."""
    chosen = student_settings(loss=loss, negatives=1, dropout=0.0)
    model = build_taught(new_student(chosen, data, 1), settings, teaching, data, 1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # logits of a trained student's size

    def draw(rows: torch.Tensor) -> torch.Tensor:
        return ((data.train.target[rows] + 6) % NUM_ITEMS).unsqueeze(1)

    return DistillObjective(model, data, teaching, chosen, settings, TeachAll(), draw)


FULL = DistillSettings(lam=0.7, alpha=0.3, ed_weight=0.2, embedding_loss_weight=0.4, candidate_topk=4)


def test_the_whole_loss_by_hand(data: StudentData, teaching: TeachingRows) -> None:
    """Row by row from the printed formulas: ce + alpha·DRO + lam·ranking + weight·embedding, two rows, one taught."""
    settings = replace(FULL, ce_loss_weight=2.0, ranking_loss_weight=0.5, temperature=0.5, beta=2.0)
    objective = objective_of(data, teaching, settings)
    rows = torch.tensor([30, 1])  # labelled, not labelled
    assert teaching.labelled(rows).tolist() == [True, False]
    model, train = objective.model, data.train
    representation = model.represent(train.history[rows], train.length[rows])
    x = model.student.scorer(representation)
    target, p = train.target[rows], data.propensity

    ce = -x.log_softmax(dim=1)[torch.arange(2), target].mean()
    dro = torch.stack([printed_dro(x[b], p, 2.0, int(target[b])) for b in range(2)])
    candidates, distances = (part[0] for part in teaching.ranking(rows))
    closeness = (-distances / 0.5).exp() + 1e-8
    position = torch.exp(-torch.arange(1.0, 5.0))
    shared = torch.tensor([float(c in x[0].topk(4).indices) for c in candidates]) + 1e-8
    weights = 0.3 * position / position.sum() + 0.5 * closeness / closeness.sum() + 0.1 * shared
    weights = (weights / weights.sum()).detach()
    negative = x[0, (target[0] + 6) % NUM_ITEMS]
    bce = -(x[0, candidates].sigmoid().log() + (1 - negative.sigmoid()).log())
    candidates_dro = torch.stack([printed_dro(x[0], p, 2.0, int(c)) for c in candidates])
    ranking = (weights * (bce + 0.3 * candidates_dro)).sum() / 2
    projected = model.parts["output_projection"](representation)[0]
    embedding = (projected - teaching.embedding(rows)[0]).square().mean() / 2

    expected = 2.0 * ce + 0.3 * dro.mean() + 0.7 * 0.5 * ranking + 0.4 * embedding
    assert objective.loss(rows).item() == pytest.approx(expected.item(), rel=1e-5)


def printed_dro(x: torch.Tensor, p: torch.Tensor, beta: float, item: int) -> torch.Tensor:
    """Golden README §1c, one row and item, in float64."""
    x, p = x.double(), p.double()
    parts = (p * x**2 / beta).exp()
    return (parts.sum() - parts[item] + (p[item] * (x[item] - 1) ** 2 / beta).exp()).log().float()


def test_bce_takes_the_same_negative_in_both_places(data: StudentData, teaching: TeachingRows) -> None:
    """main = (softplus(-x_t) + softplus(x_u)) / 2 over rows; nothing else is switched on."""
    objective = objective_of(data, teaching, NOTHING, "bce")
    rows = torch.arange(5)
    x = objective.model(data.train.history[rows], data.train.length[rows])
    target = data.train.target[rows]
    own, other = x[torch.arange(5), target], x[torch.arange(5), (target + 6) % NUM_ITEMS]
    expected = (torch.nn.functional.softplus(-own) + torch.nn.functional.softplus(other)).mean() / 2
    assert objective.loss(rows).item() == pytest.approx(expected.item(), rel=1e-6)


def test_unlabelled_rows_learn_from_main_loss_and_dro_only(data: StudentData, teaching: TeachingRows) -> None:
    rows = torch.tensor([0, 1, 3, 4])  # none of them is labelled
    assert not teaching.labelled(rows).any()
    with_teaching, without = (
        objective_of(data, teaching, settings).loss(rows)
        for settings in (replace(FULL, ed_weight=0.0), replace(NOTHING, alpha=FULL.alpha))
    )
    assert with_teaching.item() == without.item()


def test_what_stands_in_for_a_missing_label_does_not_matter(data: StudentData, teaching: TeachingRows) -> None:
    rows = torch.tensor([0, 30, 1])
    other = replace(
        teaching,
        candidates=torch.cat([teaching.candidates[:-1], torch.tensor([[9, 8, 7, 6]])]),
        distances=torch.cat([teaching.distances[:-1], torch.full((1, 4), 3.0)]),
        sequence_embedding=torch.cat([teaching.sequence_embedding[:-1], torch.full((1, 3), 50.0)]),
    )
    losses = [objective_of(data, labels, FULL).loss(rows).item() for labels in (teaching, other)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("company", [[0, 1], [2, 17], [2, 0]])
def test_a_taught_row_weighs_the_same_whatever_the_others_do(
    data: StudentData, teaching: TeachingRows, company: list[int]
) -> None:
    """The distillation part of row 30 in a batch of three is a third of what it is alone."""

    def distilled_part(rows: list[int]) -> float:
        numbers = torch.tensor(rows)
        on = objective_of(data, teaching, replace(FULL, ed_weight=0.0)).loss(numbers)
        off = objective_of(data, teaching, replace(NOTHING, alpha=FULL.alpha)).loss(numbers)
        return (on - off).item()

    together = distilled_part([30, *company])
    others = sum(distilled_part([row]) for row in company)
    assert together == pytest.approx((distilled_part([30]) + others) / 3, rel=1e-4)


def test_a_policy_cannot_teach_a_row_without_a_label(data: StudentData, teaching: TeachingRows) -> None:
    class Greedy:
        def select(self, context: SelectionContext) -> torch.Tensor:
            return torch.ones_like(context.labelled)

    rows = torch.tensor([30, 0, 1, 3])
    objective = objective_of(data, teaching, FULL)
    modest = objective.loss(rows).item()
    objective.policy = Greedy()
    assert objective.loss(rows).item() == modest


def test_the_policy_decides_what_is_taught_and_the_share_says_so(data: StudentData, teaching: TeachingRows) -> None:
    class Picky:
        def select(self, context: SelectionContext) -> torch.Tensor:
            return context.labelled & (context.target == data.train.target[30])

    objective = objective_of(data, teaching, replace(FULL, ed_weight=0.0))
    objective.policy = Picky()
    rows = torch.tensor([30, 2, 0, 1])
    assert data.train.target[30] != data.train.target[2]
    objective.loss(rows)
    assert objective.taught_share() == 1 / 4
    assert objective.taught_share() == 0.0


def test_weights_carry_no_gradient(data: StudentData, teaching: TeachingRows) -> None:
    """The student's logits enter the consistency weights and a policy detached."""

    class Watching:
        seen: SelectionContext | None = None

        def select(self, context: SelectionContext) -> torch.Tensor:
            self.seen = context
            return context.labelled

    objective = objective_of(data, teaching, FULL)
    policy = Watching()
    objective.policy = policy
    assert objective.loss(torch.tensor([30, 2])).requires_grad
    assert policy.seen is not None
    assert not policy.seen.student_logits.requires_grad


@pytest.mark.parametrize("largest", [13.0, 50.0, 200.0])
def test_the_loss_stays_finite_at_large_logits(data: StudentData, teaching: TeachingRows, largest: float) -> None:
    objective = objective_of(data, teaching, replace(FULL, alpha=1.0))
    with torch.no_grad():
        objective.model.student.scorer.bias[3] = largest
        objective.model.student.scorer.bias[4] = -largest
    loss = objective.loss(torch.arange(40))
    loss.backward()
    assert bool(torch.isfinite(loss))
    gradients = [p.grad for p in objective.model.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_an_embedding_loss_without_embeddings_is_refused_before_training(data: StudentData) -> None:
    train = cycle_data().train
    blind = align(outputs_for(train, LABELLED, width=3), train, 4, "cpu")
    blind = replace(blind, sequence_embedding=blind.sequence_embedding[:, :0])
    with pytest.raises(ConfigError, match="distill.embedding_loss_weight"):
        train_distilled(student_settings(), FULL, ActiveSettings(), EVALUATION, data, blind, seed=0)


def test_catalogue_wide_work_is_done_once_a_step(
    data: StudentData, teaching: TeachingRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[int]()

    def counted(*arguments: object) -> object:
        calls.append(1)
        return dro_terms(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(terms, "dro_terms", counted)
    objective_of(data, teaching, FULL).loss(torch.arange(40))
    assert len(calls) == 1
    assert dro_at(dro_terms(torch.zeros(1, 3), torch.ones(3), 1.0), torch.tensor([[0, 1, 2]])).shape == (1, 3)


def test_gammas_must_not_all_vanish_while_rankings_are_distilled() -> None:
    nothing: dict[str, Any] = {"gamma_position": 0.0, "gamma_confidence": 0.0, "gamma_consistency": 0.0}
    with pytest.raises(ValueError, match="must not all be 0"):
        DistillSettings(lam=0.5, **nothing)
    DistillSettings(lam=0.0, **nothing)


@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_a_training_killed_within_an_epoch_goes_on_to_the_same_student_and_the_same_share(
    data: StudentData, teaching: TeachingRows, after: int
) -> None:
    def distilled(checkpoint: Checkpoint) -> DistillRun:
        # saved after each of an epoch's three steps, and after its evaluation
        loop = LoopSettings(epochs=2, batch_size=16, monitor="ndcg_5", checkpoint_minutes=1e-9)
        settings = student_settings(loop=loop)
        return train_distilled(settings, FULL, ActiveSettings(), EVALUATION, data, teaching, 7, checkpoint=checkpoint)

    whole, checkpoint = distilled(NoCheckpoint()), DyingCheckpoint(after)
    with pytest.raises(Killed):
        distilled(checkpoint)
    again = distilled(checkpoint)
    assert again.fit.history == whole.fit.history
    assert whole.fit.history[0]["taught_share"] == len(LABELLED) / len(data.train)
    assert same_weights(again.student, whole.student)
