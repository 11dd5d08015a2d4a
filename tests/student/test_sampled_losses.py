"""Losses over sampled items: what they estimate, what they are when every item is drawn, and what a step touches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from src.core.errors import ConfigError
from src.core.lazy_adam import LazyAdam, clip_gradients
from src.core.training import LoopSettings, train_step
from src.data.tensor_examples import TensorExamples
from src.student.architectures.linear import Linear, LinearSettings
from src.student.base import ClosedForm, SequenceStudent
from src.student.datamodule import StudentData
from src.student.losses import gbce_loss, propensity, sampled_ce
from src.student.models import build_closed_form, closed_forms, student_settings
from src.student.objectives import FULL_CATALOGUE, StudentObjective, negative_sampler, resolve_loss, shared_sampler
from src.student.prior import fit_prior
from src.student.sampled_columns import Columns, Proposal, SharedNegatives, expected
from src.student.settings import EvaluationSettings, NetworkSettings
from src.student.trainer_baseline import new_student, optimiser_for, train_student
from tests.dying import DyingCheckpoint, Killed
from tests.fixtures import NUM_ITEMS, cycle_data, student_of

EVALUATION = EvaluationSettings(ks=(1, 5))
COUNTS = torch.tensor([0, 0, 1, 1, 2, 3, 5, 8, 40, 90])


def settings_of(loss: str = "sampled", **changes: Any) -> NetworkSettings:
    """A small student; all of the twelve items are drawn unless something else is asked for."""
    loop = LoopSettings(epochs=3, batch_size=16, monitor="ndcg_5", ema=float(changes.pop("ema", 0.0)))
    return student_of(
        **{
            "prior": "none",
            "width": 8,
            "dropout": 0.3,
            "loss": loss,
            "shared_negatives": NUM_ITEMS,
            "loop": loop,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def data() -> StudentData:
    """Forty training rows over twelve items."""
    return StudentData.of(cycle_data(), "cpu")


# ------------------------------------------------------------------------------------------------------ what is drawn


def test_expected_counts_by_hand() -> None:
    assert expected(COUNTS, 4, 0.0).tolist() == pytest.approx([0.4] * 10)
    # (count + 1) = 1, 1, 2, 4, 92 for 3: the last would be drawn more than once, the others share what is left of 3
    assert expected(torch.tensor([0, 0, 1, 3, 91]), 3, 1.0).tolist() == pytest.approx([0.25, 0.25, 0.5, 1.0, 1.0])


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 3, 7, 9, 10])
def test_expected_counts_add_up_to_what_is_drawn_and_none_is_more_than_one(n: int, power: float) -> None:
    found = expected(COUNTS, n, power)
    assert float(found.sum()) == pytest.approx(n)
    assert float(found.max()) <= 1.0
    assert n < 10 or found.tolist() == [1.0] * 10


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_all_items_are_drawn_once_when_as_many_are_asked_for(power: float) -> None:
    drawn = Proposal(COUNTS, 10, power, torch.Generator().manual_seed(0))()
    assert sorted(drawn.items.tolist()) == list(range(10))
    assert drawn.log_weight.tolist() == [0.0] * 10


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_weights_of_an_item_are_one_on_average(power: float) -> None:
    propose = Proposal(COUNTS, 4, power, torch.Generator().manual_seed(0))
    total, draws = torch.zeros(10, dtype=torch.float64), 3_000
    for _ in range(draws):
        items, log_weight = propose()
        assert len(items) == 4
        total.index_add_(0, items, log_weight.exp())
    # the rarest item is drawn with probability 0.03 at the least: a standard error of 0.1
    assert (total / draws - 1).abs().max() < 0.3


def test_columns_by_hand() -> None:
    """A row's own items come first; one that was drawn as well, or stands twice, counts once."""
    own = torch.tensor([[3, 5, 3], [7, 1, 2]])
    drawn = SharedNegatives(torch.tensor([5, 9, 1]), torch.tensor([0.5, 0.25, 0.125], dtype=torch.float64))
    columns = Columns.of(own, drawn)
    gone = -math.inf
    assert columns.first.tolist() == [[0, 1, 0], [0, 1, 2]]
    assert columns.log_weight.tolist() == [[0, 0, gone, gone, 0.25, 0.125], [0, 0, 0, 0.5, 0.25, gone]]
    assert columns.items.tolist() == [[3, 5, 3, 5, 9, 1], [7, 1, 2, 5, 9, 1]]
    assert columns.flat.tolist() == [3, 5, 3, 7, 1, 2, 5, 9, 1]


def test_columns_that_are_estimated_to_rank_high() -> None:
    """An item that stands for three pushes what is below it down by three."""
    columns = Columns.of(
        torch.tensor([[4, 6]]), SharedNegatives(torch.tensor([0, 1]), torch.tensor([3.0, 3.0]).log().double())
    )
    logits = torch.tensor([[1.0, 9.0, 5.0, 0.0]])  # estimated ranks from 0: 4, 0, 1, 5
    assert columns.ranked_high(logits, 1).tolist() == [[1]]
    assert columns.ranked_high(logits, 4).tolist() == [[1, 2, -1, -1]]
    assert columns.ranked_high(logits, 5).tolist() == [[1, 2, 0, -1]]


# --------------------------------------------------------------------------------------------------------- the losses


def test_sampled_softmax_by_hand() -> None:
    logits, weight = (
        torch.tensor([[math.log(2.0), 0.0, math.log(5.0)]]),
        torch.tensor([[0.0, math.log(4.0), -math.inf]]),
    )
    # 2 / (2 + 4 · 1)
    assert float(sampled_ce(logits, weight, torch.tensor([0]))) == pytest.approx(math.log(3))


def test_gbce_by_hand() -> None:
    """β = 1 - t (1 - r); with weights of 1 / r each drawn item counts once."""
    logits, weight = torch.zeros(1, 3), torch.tensor([[0.0, math.log(10.0), math.log(10.0)]])
    beta = 1 - 0.75 * 0.9
    want = (beta * math.log(2) + 2 * math.log(2)) / 3
    assert float(gbce_loss(logits, weight, torch.tensor([0]), 0.1, 0.75)) == pytest.approx(want)


def loss_of(data: StudentData, student: SequenceStudent, settings: NetworkSettings) -> Tensor:
    """Of all training rows."""
    draw = negative_sampler(data, 1, torch.Generator().manual_seed(0))
    found = shared_sampler(data, settings, 3)
    return StudentObjective(student, data, settings, draw, found and found[0]).loss(torch.arange(len(data.train)))


@pytest.mark.parametrize("architecture", ["sasrec", "transformer"])
@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("prior", ["none", "linear"])
def test_with_every_item_drawn_it_is_the_loss_over_the_catalogue(architecture: str, power: float, prior: str) -> None:
    data = StudentData.of(cycle_data(), "cpu")
    if prior == "linear":
        fitted = fit_prior(LinearSettings(l2=1.0), data.train, data.validation, NUM_ITEMS, 2, 0)
        data = StudentData.of(cycle_data(), "cpu", fitted)
    data = StudentData(**{**vars(data), "propensity": propensity(data.item_counts)})
    changes = {"architecture": architecture, "prior": prior, "dropout": 0.0, "dro_weight": 0.4, "dro_beta": 0.7}
    gradients = []
    for loss in ("ce", "sampled"):
        settings = settings_of(loss, negatives_power=power, **changes)
        student = new_student(settings, data, 0).double()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double() * 0.3)
        value = loss_of(data, student, settings)
        value.backward()
        found = {name: parameter.grad for name, parameter in student.named_parameters()}
        gradients.append((value.item(), found))
    assert gradients[1][0] == pytest.approx(gradients[0][0], abs=1e-9)
    for name, gradient in gradients[0][1].items():
        theirs = gradients[1][1][name]
        assert (gradient is None) == (theirs is None)  # a key's bias, which softmax does not see, has none
        assert gradient is None or torch.allclose(theirs, gradient, atol=1e-9), name


def test_it_is_unbiased_where_it_is_a_sum_over_the_catalogue() -> None:
    """The estimated Σ e^x of a few rows, averaged over many draws, is the sum itself."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 10, generator=draw, dtype=torch.float64)
    propose, target = Proposal(COUNTS, 3, 0.5, draw), torch.tensor([[9, 2], [0, 4]])
    total = torch.zeros(2, dtype=torch.float64)
    for _ in range(2_000):
        columns = Columns.of(target, propose(), torch.float64)
        total += (logits.gather(1, columns.items) + columns.log_weight).exp().sum(dim=1)
    assert torch.allclose(total / 2_000, logits.exp().sum(dim=1), rtol=0.05)


# ------------------------------------------------------------------------------------------------------- what is moved


def test_a_step_moves_the_rows_that_it_read_as_adam_would_and_no_others(data: StudentData) -> None:
    settings = settings_of(shared_negatives=2, architecture="transformer", dropout=0.0)
    student = new_student(settings, data, 0)
    before = {name: value.detach().clone() for name, value in student.named_parameters()}
    found = shared_sampler(data, settings, 0)
    assert found is not None
    objective = StudentObjective(student, data, settings, negative_sampler(data, 1, found[1]), found[0])
    optimiser = optimiser_for(student, settings, student)
    assert isinstance(optimiser, LazyAdam)
    train_step(objective, optimiser, torch.tensor([0]))
    gradient = student.item_embeddings.weight.grad
    assert gradient is not None
    assert gradient.is_sparse
    read = set(gradient.coalesce().indices()[0].tolist())
    assert 0 < len(read) < NUM_ITEMS
    moved = (student.item_embeddings.weight.detach() != before["item_embeddings.weight"]).any(dim=1)
    assert {row for row in range(NUM_ITEMS + 1) if moved[row]} <= read
    # Adam's first step is the learning rate in the direction of the gradient
    dense = gradient.to_dense()
    change = student.item_embeddings.weight.detach() - before["item_embeddings.weight"]
    big = dense.abs() > 1e-4
    assert torch.allclose(change[big], -settings.learning_rate * dense[big].sign(), rtol=1e-2)


def test_weight_decay_reaches_the_rows_that_were_read() -> None:
    table, other = torch.nn.Parameter(torch.ones(4, 1)), torch.nn.Parameter(torch.ones(1))
    optimiser = LazyAdam([other], [table], 0.1, weight_decay=0.5)
    rows = torch.nn.functional.embedding(torch.tensor([1]), table, sparse=True)
    (rows.sum() * 0.0 + other.sum() * 0.0).backward()
    optimiser.step()
    assert table.flatten().tolist() == pytest.approx([1.0, 0.9, 1.0, 1.0])


def test_gradients_of_tables_are_clipped_with_the_others() -> None:
    table, other = torch.nn.Parameter(torch.zeros(4, 1)), torch.nn.Parameter(torch.zeros(1))
    rows = torch.nn.functional.embedding(torch.tensor([1, 1, 2]), table, sparse=True)
    (2 * rows.sum() + 2 * other.sum()).backward()  # 4 and 2 in the table, 2 beside it
    assert float(clip_gradients([table, other], 1.0)) == pytest.approx(24**0.5)
    assert table.grad is not None
    assert other.grad is not None
    assert table.grad.to_dense().flatten().tolist() == pytest.approx([0, 4 / 24**0.5, 2 / 24**0.5, 0])
    assert other.grad.tolist() == pytest.approx([2 / 24**0.5])


@pytest.mark.parametrize("architecture", ["sasrec", "transformer"])
@pytest.mark.parametrize("saved", [1, 2, 5])
def test_a_training_that_was_killed_goes_on_to_the_last_bit(data: StudentData, architecture: str, saved: int) -> None:
    loop = LoopSettings(epochs=3, batch_size=16, monitor="ndcg_5", ema=0.9, checkpoint_minutes=1e-9, gradient_clip=0.5)
    settings = settings_of(shared_negatives=3, architecture=architecture, loop=loop, weight_decay=0.01)
    whole = train_student(settings, EVALUATION, data, seed=7)
    checkpoint = DyingCheckpoint(after=saved)
    with pytest.raises(Killed):
        train_student(settings, EVALUATION, data, 7, checkpoint=checkpoint)
    again = train_student(settings, EVALUATION, data, 7, checkpoint=checkpoint)
    assert again.fit.history == whole.fit.history
    ours, theirs = again.student.state_dict(), whole.student.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("loss", ["sampled", "gbce"])
def test_it_learns(data: StudentData, loss: str) -> None:
    loop = LoopSettings(epochs=12, batch_size=4, monitor="ndcg_5", patience=12)
    settings = settings_of(loss, shared_negatives=4, loop=loop, dropout=0.0, learning_rate=0.03)
    assert train_student(settings, EVALUATION, data, seed=0).fit.best_metrics["hit_ratio_1"] == 1.0


# --------------------------------------------------------------------------------------------------------- what is read


def test_auto_is_ce_up_to_a_size_and_sampled_above(data: StudentData) -> None:
    assert resolve_loss(settings_of("auto"), FULL_CATALOGUE).loss == "ce"
    assert resolve_loss(settings_of("auto"), FULL_CATALOGUE + 1).loss == "sampled"
    auto, full = (train_student(settings_of(loss), EVALUATION, data, seed=1) for loss in ("auto", "ce"))
    assert auto.fit.history == full.fit.history


def test_more_negatives_than_items_are_refused_before_training(data: StudentData) -> None:
    for loss in ("sampled", "gbce"):
        with pytest.raises(
            ConfigError, match="student.shared_negatives = 13: is more than the 12 items.*student.loss=ce"
        ):
            train_student(settings_of(loss, shared_negatives=13), EVALUATION, data, seed=0)
    resolve_loss(settings_of("ce", shared_negatives=13), 12)


def test_nothing_is_drawn_that_no_loss_reads(data: StudentData) -> None:
    def refuse(rows: Tensor) -> Tensor:
        raise AssertionError("negatives were drawn")

    for loss in ("ce", "sampled", "gbce"):
        settings = settings_of(loss, dro_weight=0.1)
        found = shared_sampler(data, settings, 0)
        assert (found is None) == (loss == "ce")
        StudentObjective(new_student(settings, data, 0), data, settings, refuse, found and found[0]).loss(
            torch.arange(4)
        )


@pytest.mark.parametrize("name", closed_forms())
def test_a_closed_form_scores_a_few_items_as_it_scores_them_all(name: str) -> None:
    data = StudentData.of(cycle_data(), "cpu")
    model: ClosedForm = build_closed_form(student_settings(name), NUM_ITEMS, data.history_length)
    model.item_text = torch.randn(NUM_ITEMS, 3, generator=torch.Generator().manual_seed(1))
    model.fit(data.train, torch.arange(len(data.train)))
    items = torch.randint(NUM_ITEMS, (6, 4), generator=torch.Generator().manual_seed(0))
    history, length = data.train.read(torch.arange(6), model.history_length)
    assert torch.allclose(model.score_items(history, length, items), model(history, length).gather(1, items))


def test_a_prior_is_gathered() -> None:
    data = cycle_data()
    train, validation = (TensorExamples.of(split, "cpu") for split in (data.train, data.validation))
    prior = fit_prior(LinearSettings(l2=1.0), train, validation, NUM_ITEMS, 2, 0)
    assert isinstance(prior.model, Linear)
    rows, items = torch.tensor([3, 1]), torch.tensor([[0, 5], [11, 2]])
    assert torch.equal(prior.of_items(prior.train, rows, items), prior.of(prior.train, rows).gather(1, items))
