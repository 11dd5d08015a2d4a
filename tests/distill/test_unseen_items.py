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
from src.distill.settings import DistillSettings
from src.distill.terms.item_text import TextRows
from src.distill.terms.soft_labels import soft_label_kl
from src.distill.trainer_distill import DistillObjective, build_taught
from src.student.datamodule import StudentData
from src.student.models import student_settings
from src.student.objectives import column_loss, left_out_of_answers, main_loss, negative_sampler, shared_sampler
from src.student.prior import fit_prior
from src.student.sampled_columns import Columns, SharedNegatives
from src.student.settings import EvaluationSettings
from src.student.trainer_baseline import new_student, prepare_student
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


def with_prior(name: str, **fields: Any) -> StudentData:
    """The same behind a prior."""
    data = data_of()
    text = teaching_of().item_embedding
    prior = fit_prior(student_settings(name, **fields), data.train, data.validation, NUM_ITEMS, 2, 0, text)
    return replace(data, prior=prior)


def answered(data: StudentData) -> Tensor:
    """Rows whose targets were seen."""
    return torch.nonzero(~torch.isin(data.train.target, UNSEEN)).squeeze(1)


def teaching_of() -> TeachingRows:
    """A label for every row, and embeddings of three numbers."""
    train = cycle_data().train
    return align(outputs_for(train, np.arange(40)), train, 4, "cpu")


def bias_gradient(loss: str, unseen_negatives: bool = False) -> Tensor:
    """The gradient of the map from an item's text to its bias by what each item adds to it, ``[V]``: a table of
    one-hot texts has a weight for every item."""
    data, teaching = data_of(), replace(teaching_of(), item_embedding=torch.eye(NUM_ITEMS))
    settings = student_of(
        "transformer", width=8, loss=loss, dropout=0.0, window=0, negatives=9, shared_negatives=NUM_ITEMS,
        unseen_negatives=unseen_negatives,
    )  # fmt: skip
    model = build_taught(new_student(settings, data, 1), TEXT, teaching, data, 1)
    part = model.parts["item_text"]
    assert isinstance(part, TextRows)
    # the gate open for every item, each with a text of its own
    part.text, part.seen = torch.eye(NUM_ITEMS), torch.zeros(NUM_ITEMS, dtype=torch.bool)
    part.row, part.bias = torch.nn.Linear(NUM_ITEMS, 8, bias=False), torch.nn.Linear(NUM_ITEMS, 1)
    part.output_row = None if part.tied else torch.nn.Linear(NUM_ITEMS, model.student.representation, bias=False)
    left_out = left_out_of_answers(settings, data, texts=True)
    draw = negative_sampler(data, 9, torch.Generator().manual_seed(2), left_out)
    shared = shared_sampler(data, settings, 3)
    objective = DistillObjective(
        model, data, teaching, settings, TEXT, TeachAll(), draw, shared=shared and shared[0], left_out=left_out
    )
    objective.loss(answered(data)).backward()
    assert part.bias.weight.grad is not None
    return part.bias.weight.grad[0]


@pytest.mark.parametrize("loss", ["ce", "sampled", "gbce", "bce"])
def test_a_step_learns_nothing_against_an_item_that_it_could_not_have_for_a_target(loss: str) -> None:
    seen = ~torch.isin(torch.arange(NUM_ITEMS), UNSEEN)
    gradient = bias_gradient(loss)
    assert torch.equal(gradient[UNSEEN], torch.zeros(2))
    assert bool((gradient[seen] != 0).all())
    assert bool((bias_gradient(loss, unseen_negatives=True)[UNSEEN] > 0).all())


def test_who_leaves_them_out() -> None:
    data, student = with_prior("text_linear", text_weight=0.5), student_of(prior="text_linear")
    found = left_out_of_answers(student, data)
    assert found is not None
    assert found.tolist() == [LEFT_OUT if item in (2, 7) else 0.0 for item in range(NUM_ITEMS)]
    assert left_out_of_answers(replace(student, unseen_negatives=True), data) is None
    # a student without this prior, or with another one, knows nothing of such an item, unless its row is its text
    assert left_out_of_answers(student_of(prior="none"), data) is None
    assert left_out_of_answers(student_of(prior="linear"), with_prior("linear")) is None
    assert left_out_of_answers(student_of(prior="none"), data, texts=True) is not None
    assert left_out_of_answers(student, StudentData.of(cycle_data(), "cpu"), texts=True) is None


def test_a_student_alone_behind_a_prior_that_reads_texts_learns_nothing_against_them() -> None:
    data = with_prior("text_linear", text_weight=0.5)
    for against in (False, True):
        settings = student_of("transformer", width=8, prior="text_linear", window=0, unseen_negatives=against)
        student, fit = prepare_student(settings, EvaluationSettings(ks=(5,)), data, 1)
        fit.objective.loss(answered(data)).backward()
        gradient = student.scorer.bias.grad
        assert gradient is not None
        assert bool((gradient[UNSEEN] == 0).all()) is not against


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
    draw, left_out = negative_sampler(data, 1, torch.Generator()), left_out_of_answers(student_of(), data, texts=True)
    objective = DistillObjective(model, data, teaching, student_of(width=8), soft, TeachAll(), draw, left_out=left_out)
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
    left_out = left_out_of_answers(student_of(), data, texts=True)
    assert left_out is not None
    drawn = negative_sampler(data, 500, torch.Generator().manual_seed(0), left_out)(rows)
    history, _ = data.train.read(rows)
    for row in range(40):
        wrong = {*history[row].tolist(), int(data.train.target[row])}
        assert set(drawn[row].tolist()) == set(range(NUM_ITEMS)) - {2, 7} - wrong
    most = left_out.masked_fill(torch.arange(NUM_ITEMS) > 3, LEFT_OUT)
    few = negative_sampler(data, 500, torch.Generator().manual_seed(0), most)(rows)
    assert torch.equal(few, negative_sampler(data, 500, torch.Generator().manual_seed(0))(rows))


@pytest.mark.parametrize(("name", "reads"), [("linear", False), ("text_linear", True)])
def test_a_row_that_is_treated_as_never_seen_keeps_what_a_prior_says_of_its_text(name: str, reads: bool) -> None:
    data = with_prior(name, **({"text_weight": 0.5} if reads else {}))
    student = new_student(student_of("transformer", width=8, prior=name), data, 1)
    dropped = replace(TEXT, text_dropout=1.0)
    part = build_taught(student, dropped, teaching_of(), data, 1).parts["item_text"]
    assert isinstance(part, TextRows)
    part.train().log_count.fill_(float(np.log(2)))  # seen once each: all are left out
    part.begin()
    scores = torch.randn(3, NUM_ITEMS)
    assert torch.equal(part.prior(scores), scores if reads else torch.zeros_like(scores))
