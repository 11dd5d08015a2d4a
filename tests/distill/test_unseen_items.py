"""Items that training never has for a target, where their texts score them: nothing is learned against them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from src.distill.data_bridge import TeachingRows, align
from src.distill.selection_policy import TeachAll
from src.distill.settings import DistillSettings, leaves_unseen_out
from src.distill.terms.item_text import TextRows
from src.distill.terms.soft_labels import soft_label_kl
from src.distill.trainer_distill import DistillObjective, build_taught, left_out_of_answers
from src.student.columns import Columns, SharedNegatives
from src.student.datamodule import StudentData
from src.student.models import student_settings
from src.student.objectives import column_loss, main_loss, negative_sampler, shared_sampler
from src.student.prior import fit_prior
from src.student.trainer_baseline import new_student
from tests.fixtures import NUM_ITEMS, cycle_data, outputs_for, student_of

UNSEEN = torch.tensor([2, 7])
NOTHING = DistillSettings(lam=0.0, alpha=0.0, ed_weight=0.0, candidate_topk=4)
TEXT = replace(NOTHING, text_weight=0.6, text_dropout=0.0)
LEFT_OUT = float("-inf")


def data_of() -> StudentData:
    """Forty rows that are said to have neither item 2 nor item 7 for a target (`answered` rows have not)."""
    data = StudentData.of(cycle_data(), "cpu")
    counts = data.item_counts.clone()
    counts[UNSEEN] = 0
    return replace(data, item_counts=counts)


def answered(data: StudentData) -> Tensor:
    """Rows whose targets were seen."""
    return torch.nonzero(~torch.isin(data.train.target, UNSEEN)).squeeze(1)


def teaching_of() -> TeachingRows:
    """A label for every row, and embeddings of three numbers."""
    train = cycle_data().train
    return align(outputs_for(train, np.arange(40)), train, 4, "cpu")


def bias_gradient(distill: DistillSettings, loss: str) -> Tensor:
    """The gradient of the map from an item's text to its bias by what each item adds to it, ``[V]``: a table of
    one-hot texts has a weight for every item."""
    data, teaching = data_of(), replace(teaching_of(), item_embedding=torch.eye(NUM_ITEMS))
    settings = student_of(
        "transformer", width=8, loss=loss, dropout=0.0, window=0, negatives=9, shared_negatives=NUM_ITEMS
    )
    model = build_taught(new_student(settings, data, 1), distill, teaching, data, 1)
    part = model.parts["item_text"]
    assert isinstance(part, TextRows)
    # the gate open for every item, each with a text of its own
    part.text, part.seen = torch.eye(NUM_ITEMS), torch.zeros(NUM_ITEMS, dtype=torch.bool)
    part.row, part.bias = torch.nn.Linear(NUM_ITEMS, 8, bias=False), torch.nn.Linear(NUM_ITEMS, 1)
    part.output_row = None if part.tied else torch.nn.Linear(NUM_ITEMS, model.student.representation, bias=False)
    among = torch.nonzero(data.item_counts).squeeze(1) if leaves_unseen_out(distill) else None
    draw = negative_sampler(data, 9, torch.Generator().manual_seed(2), among)
    shared = shared_sampler(data, settings, 3)
    objective = DistillObjective(
        model, data, teaching, settings, distill, TeachAll(), draw, shared=shared and shared[0]
    )
    objective.loss(answered(data)).backward()
    assert part.bias.weight.grad is not None
    return part.bias.weight.grad[0]


@pytest.mark.parametrize("loss", ["ce", "sampled", "gbce", "bce"])
def test_a_step_learns_nothing_against_an_item_that_it_could_not_have_for_a_target(loss: str) -> None:
    seen = ~torch.isin(torch.arange(NUM_ITEMS), UNSEEN)
    gradient = bias_gradient(TEXT, loss)
    assert torch.equal(gradient[UNSEEN], torch.zeros(2))
    assert bool((gradient[seen] != 0).all())
    assert bool((bias_gradient(replace(TEXT, unseen_negatives=True), loss)[UNSEEN] > 0).all())


def test_who_leaves_them_out() -> None:
    data = data_of()
    assert leaves_unseen_out(TEXT)
    assert leaves_unseen_out(replace(NOTHING, text_prior=True))
    assert not leaves_unseen_out(replace(TEXT, unseen_negatives=True))
    # embeddings at the input do not score an item that has no interactions
    assert not leaves_unseen_out(replace(NOTHING, ed_weight=0.5, soft_weight=0.5))
    found = left_out_of_answers(TEXT, data)
    assert found is not None
    assert found.tolist() == [LEFT_OUT if item in (2, 7) else 0.0 for item in range(NUM_ITEMS)]
    assert left_out_of_answers(TEXT, StudentData.of(cycle_data(), "cpu")) is None


def test_cross_entropy_without_an_item_by_hand() -> None:
    logits, target = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).log(), torch.tensor([1])
    settings = student_of(loss="ce")
    out = torch.tensor([0.0, 0.0, 0.0, LEFT_OUT])
    # -log(2 / (1 + 2 + 3)), and with the last item -log(2 / 10)
    assert float(main_loss(logits, target, settings, None, out)) == pytest.approx(1.0986123)
    assert float(main_loss(logits, target, settings, None)) == pytest.approx(1.6094379)


def test_a_sampled_loss_without_an_item_by_hand() -> None:
    drawn = SharedNegatives(torch.tensor([2, 3]), torch.tensor([2.0, 4.0], dtype=torch.float64).log())
    columns = Columns.of(torch.tensor([[1]]), drawn)
    logits, settings = torch.tensor([[2.0, 3.0, 4.0]]).log(), student_of(loss="sampled", shared_negatives=2)
    # items 2 and 3 stand for two and four; without item 3: -log(2 / (2 + 2 · 3))
    out = columns.log_weight + torch.tensor([[0.0, 0.0, LEFT_OUT]])
    assert float(column_loss(logits, columns, settings, 4, out)) == pytest.approx(1.3862944)


def test_what_a_teacher_lists_is_an_answer_and_what_nobody_saw_is_none() -> None:
    data, teaching = data_of(), teaching_of()
    soft = replace(TEXT, soft_weight=0.5)
    model = build_taught(new_student(student_of(width=8), data, 1), soft, teaching, data, 1).eval()
    draw = negative_sampler(data, 1, torch.Generator())
    objective = DistillObjective(model, data, teaching, student_of(width=8), soft, TeachAll(), draw)
    row = torch.nonzero(data.train.target == 1)[0]  # its teacher lists items 1, 2, 3 and 4
    alone = replace(soft, ce_loss_weight=0.0)
    objective.settings = alone
    logits = model.logits(model.represent(*data.train.read(row, model.student.window)), None)
    weight = torch.zeros(1, NUM_ITEMS)
    weight[0, 7] = LEFT_OUT
    candidates, distances = teaching.ranking(row)
    by_hand = 0.5 * soft_label_kl(logits, candidates, distances, 1.0, weight, NUM_ITEMS).mean()
    assert objective.loss(row).item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_negatives_are_drawn_among_some_items_alone() -> None:
    data, rows = data_of(), torch.arange(40)
    among = torch.nonzero(data.item_counts).squeeze(1)
    drawn = negative_sampler(data, 500, torch.Generator().manual_seed(0), among)(rows)
    history, _ = data.train.read(rows)
    for row in range(40):
        wrong = {*history[row].tolist(), int(data.train.target[row])}
        assert set(drawn[row].tolist()) == set(among.tolist()) - wrong
    few = negative_sampler(data, 500, torch.Generator().manual_seed(0), among[:3])(rows)
    assert torch.equal(few, negative_sampler(data, 500, torch.Generator().manual_seed(0))(rows))


@pytest.mark.parametrize(("name", "reads"), [("linear", False), ("text_linear", True)])
def test_a_row_that_is_treated_as_never_seen_keeps_what_a_prior_says_of_its_text(name: str, reads: bool) -> None:
    data, fields = data_of(), {"text_weight": 0.5} if reads else {}
    chosen: Any = student_settings(name, **fields)
    text = teaching_of().item_embedding if reads else None
    prior = fit_prior(chosen, data.train, data.validation, NUM_ITEMS, 2, 0, text)
    data = replace(data, prior=prior)
    student = new_student(student_of("transformer", width=8, prior=name), data, 1)
    dropped = replace(TEXT, text_dropout=1.0)
    part = build_taught(student, dropped, teaching_of(), data, 1).parts["item_text"]
    assert isinstance(part, TextRows)
    part.train().log_count.fill_(float(np.log(2)))  # seen once each: all are left out
    part.begin()
    scores = torch.randn(3, NUM_ITEMS)
    assert torch.equal(part.prior(scores), scores if reads else torch.zeros_like(scores))
