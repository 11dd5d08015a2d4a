"""The newer terms by hand, what is folded, and what every term promises."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from src.core.errors import ConfigError
from src.core.training import LoopSettings
from src.distill.data_bridge import TeachingRows, align
from src.distill.parts import TaughtStudent
from src.distill.preflight import check_teachers
from src.distill.selection_policy import TeachAll
from src.distill.settings import DistillSettings, active_terms, terms
from src.distill.terms.item_embeddings import TeacherItemInput
from src.distill.terms.item_text import ItemTextSettings, TextRows, whitened
from src.distill.terms.rejuvenated_ce import rejuvenated_ce
from src.distill.terms.soft_labels import soft_label_kl
from src.distill.trainer_distill import DistillObjective, build_taught
from src.student.base import SequenceStudent
from src.student.datamodule import StudentData
from src.student.models import student_settings
from src.student.prior import fit_prior
from src.student.settings import NetworkSettings
from src.student.trainer_baseline import new_student
from tests.fixtures import NUM_ITEMS, cycle_data, outputs_for, student_of

NOTHING = DistillSettings(lam=0.0, alpha=0.0, ed_weight=0.0, candidate_topk=4)
LABELLED = np.arange(40)

# ------------------------------------------------------------------------------------------------------- soft labels


def test_soft_labels_by_hand() -> None:
    """Teacher 1/2, 1/4 and 1/4 spread over three items; a uniform student over five."""
    logits, candidates = torch.zeros(1, 5), torch.tensor([[3, 0]])
    distances = -torch.tensor([[0.5, 0.25]]).log()
    # against 1/5, 1/5 and 3/5
    expected = 0.5 * np.log(0.5 / 0.2) + 0.25 * np.log(0.25 / 0.2) + 0.25 * np.log(0.25 / 0.6)
    assert float(soft_label_kl(logits, candidates, distances, 1.0)) == pytest.approx(expected, rel=1e-5)


def test_soft_labels_at_another_temperature_by_hand() -> None:
    """τ = 2: square roots, every item that was left out having a third of a quarter."""
    logits = torch.tensor([[2.0, 0.0, 0.0, 4.0, 0.0]])
    candidates, distances = torch.tensor([[3, 0]]), -torch.tensor([[0.5, 0.25]]).log()
    teacher = np.array([0.5**0.5, 0.25**0.5, 3 * (0.25 / 3) ** 0.5])
    teacher /= teacher.sum()
    student = np.exp([2.0, 1.0, 0.0])
    student[2] *= 3
    student /= student.sum()
    expected = float((teacher * np.log(teacher / student)).sum())
    assert float(soft_label_kl(logits, candidates, distances, 2.0)) == pytest.approx(expected, rel=1e-5)


def test_distances_that_are_no_probabilities_are_normalised() -> None:
    """Two at distance 0 (as unlabelled rows have): a half each, and nothing left over."""
    logits = torch.tensor([[1.0, 1.0, -50.0, -50.0]])
    found = soft_label_kl(logits, torch.tensor([[0, 1]]), torch.zeros(1, 2), 1.0)
    assert float(found) == pytest.approx(0.0, abs=2e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(temperature: float) -> None:
    p = torch.tensor([[0.4, 0.3, 0.1, 0.1, 0.1]])
    logits = p.log().requires_grad_()
    found = soft_label_kl(logits, torch.tensor([[0, 1]]), -torch.tensor([[0.4, 0.3]]).log(), temperature)
    assert float(found.detach()) == pytest.approx(0.0, abs=1e-6)
    found.sum().backward()
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-5


def test_a_teacher_that_lists_the_whole_catalogue_leaves_nothing_over() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25]])
    found = soft_label_kl(torch.zeros(1, 3), torch.tensor([[2, 0, 1]]), -p.log(), 1.0)
    expected = 0.5 * np.log(1.5) + 0.5 * np.log(0.75)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [0.0, 20.0, 200.0])
def test_soft_labels_stay_finite(size: float) -> None:
    logits = torch.tensor([[size, -size, 0.0, 1.0]], requires_grad=True)
    found = soft_label_kl(logits, torch.tensor([[0, 1]]), torch.tensor([[0.0, 40.0]]), 0.5)
    found.sum().backward()
    assert logits.grad is not None
    assert bool(torch.isfinite(found).all() and torch.isfinite(logits.grad).all())


# ------------------------------------------------------------------------------------------------------ RCE, by hand


def test_rejuvenated_ce_by_hand() -> None:
    """Teacher lists 0, 1, 2; the student's favourites are 0, 4, 5: shared {0}, the rest {1, 2} with 4 and 5 added."""
    logits = torch.tensor([[3.0, 0.5, -1.0, -9.0, 2.0, 1.0]])
    candidates, distances = torch.tensor([[0, 1, 2]]), -torch.tensor([[0.5, 0.3, 0.1]]).log()
    favourites = torch.tensor([[0, 4, 5]])
    x = logits[0].numpy().astype(float)
    together = 0.0  # one shared item among one
    among = np.log(np.exp(x[[1, 2, 4, 5]]).sum())
    apart = -(0.75 * (x[1] - among) + 0.25 * (x[2] - among))
    expected = 1 / 3 * together + 2 / 3 * apart
    assert float(rejuvenated_ce(logits, candidates, distances, favourites, 1.0)) == pytest.approx(expected, rel=1e-5)


def test_rejuvenated_ce_of_two_shared_items_by_hand() -> None:
    """Shared {0, 1} with q = 2/3, 1/3 at τ = 1; at τ = 1/2 these are squared: 4/5, 1/5."""
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0]])
    candidates, distances = torch.tensor([[0, 1]]), -torch.tensor([[0.5, 0.25]]).log()
    favourites = torch.tensor([[3, 0, 1]])
    lse = np.log(np.exp(1.0) + 1.0)
    for temperature, q in ((1.0, 2 / 3), (0.5, 4 / 5)):
        expected = -(q * (1.0 - lse) + (1 - q) * (0.0 - lse))
        found = rejuvenated_ce(logits, candidates, distances, favourites, temperature)
        assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_part_with_next_to_no_share_of_the_ranking_counts_in_full() -> None:
    """Unshared candidates at distance 40 (e⁻⁴⁰): their weights are normalised among themselves all the same."""
    logits = torch.tensor([[3.0, 0.5, -1.0, -9.0]])
    candidates, distances = torch.tensor([[0, 1, 2]]), torch.tensor([[0.0, 40.0, 40.0]])
    favourites = torch.tensor([[0]])
    among = np.log(np.exp(0.5) + np.exp(-1.0))
    expected = 2 / 3 * -(0.5 * (0.5 - among) + 0.5 * (-1.0 - among))
    assert float(rejuvenated_ce(logits, candidates, distances, favourites, 1.0)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("favourites", [[0, 1, 2], [3, 4, 5], [0, 3, 4], [0]], ids=["all", "none", "one", "small"])
def test_an_empty_part_sends_no_gradient_and_nothing_infinite(favourites: list[int]) -> None:
    logits = torch.tensor([[3.0, 0.5, -1.0, -9.0, 2.0, 1.0]], requires_grad=True)
    candidates, distances = torch.tensor([[0, 1, 2]]), torch.tensor([[0.1, 0.9, 3.0]])
    found = rejuvenated_ce(logits, candidates, distances, torch.tensor([favourites]), 1.0)
    found.sum().backward()
    assert logits.grad is not None
    assert bool(torch.isfinite(found).all() and torch.isfinite(logits.grad).all())
    assert float(logits.grad.sum()) == pytest.approx(0.0, abs=1e-6)  # softmax: what one gains others lose
    assert float(logits.grad[0, 0]) < 0 or favourites != [3, 4, 5]


def test_as_many_favourites_are_added_as_there_are_candidates() -> None:
    """Of many, K; which of them is drawn anew each time."""
    torch.manual_seed(0)
    logits = torch.zeros(1, 50)
    candidates, distances = torch.tensor([[48, 49]]), torch.zeros(1, 2)
    favourites = torch.arange(40).unsqueeze(0)
    # all logits are equal, so the loss is the log of how many items compete: two candidates and two more
    assert float(rejuvenated_ce(logits, candidates, distances, favourites, 1.0)) == pytest.approx(np.log(4), rel=1e-5)
    varied = torch.randn(1, 50)
    assert len({float(rejuvenated_ce(varied, candidates, distances, favourites, 1.0)) for _ in range(8)}) > 1


# -------------------------------------------------------------------------------------------------- the text of items


def data_of(prior: str = "none") -> StudentData:
    """Forty rows; items 2 and 7 are never a target."""
    data = StudentData.of(cycle_data(), "cpu")
    counts = data.item_counts.clone()
    counts[2] = counts[7] = 0
    if prior != "none":
        fitted = fit_prior(student_settings(prior), data.train, data.validation, NUM_ITEMS, 2, 0)
        return replace(data, item_counts=counts, prior=fitted)
    return replace(data, item_counts=counts)


def teaching_of(top_n: int = 4) -> TeachingRows:
    """A label for every row, and embeddings of three numbers."""
    train = cycle_data().train
    return align(outputs_for(train, LABELLED, top_n), train, top_n, "cpu")


def settings_of(tied: bool, prior: str = "none") -> NetworkSettings:
    loop = LoopSettings(epochs=2, batch_size=16, monitor="ndcg_5")
    return student_of("transformer", width=8, tied=tied, prior=prior, loop=loop, window=0, dropout=0.3)


def randomised(model: TaughtStudent) -> TaughtStudent:
    """Every parameter random."""
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / 2)
    return model


def text_part(model: TaughtStudent) -> TextRows:
    part = model.parts["item_text"]
    assert isinstance(part, TextRows)
    return part


@pytest.mark.parametrize("tied", [True, False])
def test_an_item_never_seen_has_exactly_the_rows_of_its_text(tied: bool) -> None:
    data, settings = data_of(), replace(NOTHING, text_weight=0.6)
    model = randomised(build_taught(new_student(settings_of(tied), data, 1), settings, teaching_of(), data, 1)).eval()
    part = text_part(model)
    text, bias = part.row(part.text).detach(), part.bias(part.text).squeeze(1).detach()
    output = text if part.output_row is None else part.output_row(part.text).detach()
    free = model.student.item_embeddings.weight.detach().clone()
    student = model.fold()
    for item in (2, 7):
        assert torch.allclose(student.item_embeddings.weight[item], text[item], atol=1e-6)
        assert torch.allclose(student.scorer.weight[item], output[item], atol=1e-6)
        assert torch.allclose(student.scorer.bias[item], bias[item], atol=1e-6)
    # an item that was seen: gate · text + (1 - gate) · free
    gate = 0.6 * torch.sigmoid(part.level - part.slope * torch.log1p(data.item_counts[4].float())).detach()
    assert torch.allclose(student.item_embeddings.weight[4], gate * text[4] + (1 - gate) * free[4], atol=1e-6)
    assert torch.equal(student.item_embeddings.weight[NUM_ITEMS], free[NUM_ITEMS])


def test_an_added_item_has_the_row_and_bias_of_one_never_seen_with_its_text() -> None:
    for tied in (True, False):
        data, settings = data_of(), replace(NOTHING, text_weight=0.6, ed_weight=0.4)
        model = randomised(build_taught(new_student(settings_of(tied), data, 1), settings, teaching_of(), data, 1))
        student = model.fold()
        maps, text = student.from_text, teaching_of().item_embedding
        around = torch.nn.functional.pad(text - maps["mean"], (0, 1), value=1.0)
        for item in (2, 7):
            assert torch.allclose(around[item] @ maps["input"], student.item_embeddings.weight[item], atol=1e-5)
            output = maps["input"] if tied else maps["output"]
            assert torch.allclose(around[item] @ output, student.scorer.weight[item], atol=1e-5)
            assert torch.allclose(around[item] @ maps["bias"], student.scorer.bias[item], atol=1e-5)


def test_without_rows_from_texts_nothing_is_remembered() -> None:
    data, settings = data_of(), replace(NOTHING, ed_weight=0.4)
    model = build_taught(new_student(settings_of(tied=True), data, 1), settings, teaching_of(), data, 1)
    assert model.fold().from_text == {}


@pytest.mark.parametrize("tied", [True, False])
def test_a_table_that_starts_from_texts_and_is_else_the_students_own(tied: bool) -> None:
    data, teaching = data_of(), teaching_of()
    start = new_student(settings_of(tied), data, 1)
    before = start.item_embeddings.weight.detach().clone()
    model = build_taught(start, replace(NOTHING, text_start=1.5), teaching, data, 1)
    table, features = model.student.item_embeddings.weight.detach(), whitened(teaching.item_embedding, 8)
    width = features.shape[1]
    assert 0 < width < 8  # three numbers tell of three directions at most
    assert torch.allclose(table[:-1, :width], 1.5 * 0.02 * features, atol=1e-7)
    assert torch.equal(table[:, width:], before[:, width:])
    assert torch.equal(table[-1], before[-1])
    assert not model.parts
    # each direction is as large as the random numbers that it stands for
    assert float(table[:-1, :width].std(correction=0)) == pytest.approx(1.5 * 0.02, rel=1e-4)


def test_the_gate_falls_with_the_count() -> None:
    student = new_student(settings_of(True), data_of(), 1)
    counts = torch.tensor([0, 1, 2, 5, 20, 100, 1000] + [3] * 5)
    part = TextRows(student, torch.randn(NUM_ITEMS, 6), counts, ItemTextSettings(text_weight=0.8)).eval()
    gate = part._gate(None).squeeze(1)[:7].tolist()
    assert gate[0] == 1.0
    assert gate[1] < 0.8
    assert all(earlier > later for earlier, later in pairwise(gate))


def test_items_are_left_out_in_training_by_their_count_and_only_there() -> None:
    student = new_student(settings_of(True), data_of(), 1)
    counts = torch.tensor([1] * 6 + [10_000] * 6)
    part = TextRows(student, torch.randn(NUM_ITEMS, 6), counts, ItemTextSettings(text_weight=0.5, text_dropout=1.0))
    history = torch.zeros(1, 1, dtype=torch.int64)
    torch.manual_seed(0)
    part.train().extra(history)
    assert part._gate(None).squeeze(1)[:6].tolist() == [1.0] * 6  # 1 / sqrt(1): each time
    assert float(part._gate(None)[6:].detach().max()) < 0.5
    scores = torch.ones(2, NUM_ITEMS)
    assert part.prior(scores)[:, :6].abs().max() == 0
    assert part.prior(scores)[:, 6:].min() == 1
    # nothing of that reaches an evaluation, or what is folded
    part.eval()
    assert float(part._gate(None).detach().max()) < 0.5
    assert torch.equal(part.prior(scores), scores)


@pytest.mark.parametrize("prior", ["none", "linear"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("evaluated", [True, False])
def test_several_parts_fold_into_a_student_with_the_same_logits(tied: bool, prior: str, evaluated: bool) -> None:
    data = data_of(prior)
    settings = replace(NOTHING, text_weight=0.6, ed_weight=0.7, embedding_loss_weight=0.2)
    built = build_taught(new_student(settings_of(tied, prior), data, 1), settings, teaching_of(), data, 1)
    model = randomised(built)
    assert set(model.parts) == {"item_input", "item_text", "output_projection"}
    model.train()
    model(data.train.history, data.train.length)  # leaves some items out
    model.eval()
    history, length = data.validation.history, data.validation.length
    with torch.no_grad():
        before = model(history, length)
        if not evaluated:
            model.train()
            model(history, length)
        student = model.fold()
        assert not student.training
        assert torch.allclose(student(history, length), before, atol=1e-5)
    assert student.state_dict().keys() == new_student(settings_of(tied, prior), data, 1).state_dict().keys()


def test_the_teachers_part_of_a_tied_student_reaches_its_output() -> None:
    data, settings = data_of(), replace(NOTHING, ed_weight=0.7)
    model = randomised(build_taught(new_student(settings_of(True), data, 1), settings, teaching_of(), data, 1)).eval()
    part = model.parts["item_input"]
    assert isinstance(part, TeacherItemInput)
    representation = torch.randn(3, 8)
    rows = model.student.item_embeddings.weight[:-1] + part.item_rows()[:-1]
    expected = representation @ rows.T + model.student.scorer.bias
    assert torch.allclose(model.logits(representation, None), expected, atol=1e-5)


def test_whitened_text_has_unit_variance_and_no_directions_of_rounding() -> None:
    torch.manual_seed(0)
    embedding = torch.randn(50, 3) @ torch.randn(3, 20) + 5
    found = whitened(embedding, 16)
    assert found.shape == (50, 3)  # three directions differ, whatever the width
    assert torch.allclose(found.T @ found / 50, torch.eye(3), atol=1e-4)
    assert torch.allclose(found.mean(dim=0), torch.zeros(3), atol=1e-5)
    assert whitened(embedding, 2).shape == (50, 2)
    assert bool(torch.isfinite(whitened(torch.ones(5, 4), 2)).all())


# ------------------------------------------------------------------------------------------ what every term promises


def objective_of(settings: DistillSettings, teaching: TeachingRows, loss: str = "ce") -> DistillObjective:
    """Dropout off, negatives fixed, weights of a trained student's size."""
    data = StudentData.of(cycle_data(), "cpu")
    chosen = student_of(width=8, loss=loss, dropout=0.0)
    model = build_taught(new_student(chosen, data, 1), settings, teaching, data, 1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)

    def draw(rows: Tensor) -> Tensor:
        return ((data.train.target[rows] + 6) % NUM_ITEMS).unsqueeze(1)

    return DistillObjective(model, data, teaching, chosen, settings, TeachAll(), draw)


LABEL_TERMS = {"ranking": {"lam": 0.5}, "soft_labels": {"soft_weight": 0.5}, "rejuvenated_ce": {"rce_weight": 0.5}}


@pytest.mark.parametrize("name", LABEL_TERMS)
def test_a_teacher_that_lists_more_than_is_distilled_is_cut(name: str) -> None:
    """A search shares outputs as wide as they were exported; a single run reads the first K: both learn the same."""
    settings: DistillSettings = replace(NOTHING, **LABEL_TERMS[name])
    rows, losses = torch.arange(40), []
    for top_n in (4, 8):
        torch.manual_seed(0)
        losses.append(objective_of(settings, teaching_of(top_n)).loss(rows).item())
    assert losses[0] == losses[1]
    torch.manual_seed(0)
    wider = objective_of(replace(settings, candidate_topk=8), teaching_of(8)).loss(rows).item()
    assert wider != losses[0]


@pytest.mark.parametrize("name", LABEL_TERMS)
def test_a_label_term_is_its_weighted_mean_over_all_rows(name: str) -> None:
    """Twice the weight is twice the term; a row without a label adds nothing and counts in the mean."""
    train = cycle_data().train
    teaching = align(outputs_for(train, np.arange(0, 40, 2)), train, 4, "cpu")

    def term(change: dict[str, float], rows: Tensor) -> float:
        torch.manual_seed(0)
        on = objective_of(replace(NOTHING, **change), teaching).loss(rows).item()
        return on - objective_of(NOTHING, teaching).loss(rows).item()

    once = term(LABEL_TERMS[name], torch.arange(0, 40, 2))
    twice = term({key: 2 * value for key, value in LABEL_TERMS[name].items()}, torch.arange(0, 40, 2))
    assert twice == pytest.approx(2 * once, rel=1e-4)
    assert term(LABEL_TERMS[name], torch.arange(1, 40, 2)) == 0.0
    if name != "rejuvenated_ce":  # which draws for each row
        assert term(LABEL_TERMS[name], torch.arange(40)) == pytest.approx(once / 2, rel=1e-3)


def test_soft_labels_are_weighted_by_the_square_of_the_temperature() -> None:
    teaching, rows = teaching_of(), torch.arange(40)
    objective = objective_of(replace(NOTHING, soft_weight=0.3, soft_temperature=2.0), teaching)
    logits = objective.model(objective.data.train.history, objective.data.train.length)
    kl = soft_label_kl(logits, *teaching.ranking(rows), 2.0).mean()
    expected = objective_of(NOTHING, teaching).loss(rows) + 0.3 * 4 * kl
    assert objective.loss(rows).item() == pytest.approx(expected.item(), rel=1e-5)


def test_terms_stand_in_the_order_of_the_sum() -> None:
    names = [term.name for term in terms()]
    assert names == [
        "text_prior", "dro", "ranking", "text_start", "item_input", "item_text", "output_projection", "soft_labels",
        "rejuvenated_ce",
    ]  # fmt: skip
    assert [term.order for term in terms()] == sorted(term.order for term in terms())
    assert len(set(names)) == len(names)


def test_every_key_of_every_term_is_a_key_of_the_settings_once() -> None:
    keys = Counter(key for term in terms() for key in term.own_keys())
    assert set(keys.values()) == {1}
    held = [field.name for field in fields(DistillSettings)]  # type: ignore[arg-type]
    assert set(held) - set(keys) == {"ce_loss_weight", "teachers", "outputs_from"}
    assert set(keys) <= set(held)
    assert len(held) == len(set(held))
    for term in terms():
        assert set(term.switches) <= set(term.own_keys())
        assert set(term.shared) <= set(term.own_keys())
        assert set(term.also_needs) <= set(term.own_keys())
        assert set(term.also_needs.values()) <= set(held)


@pytest.mark.parametrize("term", terms(), ids=lambda term: term.name)
def test_off_switches_a_term_off_and_one_above_zero_on(term: Any) -> None:
    student = student_of()
    off = term.off(student)
    assert not term.is_on(DistillSettings(**off))
    for key in term.switches:
        on = DistillSettings(
            **{**{k: v for t in terms() for k, v in t.off(student).items()}, key: True if off[key] is False else 0.5}
        )
        assert active_terms(on) == (term,)


def test_nothing_but_the_main_loss_is_left_with_every_term_off() -> None:
    student = student_of(dro_weight=0.2, dro_beta=3.0)
    off: dict[str, Any] = {key: value for term in terms() for key, value in term.off(student).items()}
    settings = DistillSettings(**off)
    # the student alone may have DRO, and so has the neutral point
    assert [term.name for term in active_terms(settings)] == ["dro"]
    assert (settings.alpha, settings.beta) == (0.2, 3.0)


def test_a_part_may_change_the_prior_alone() -> None:
    from src.distill.parts import Part

    class Muted(Part):
        def prior(self, scores: Tensor) -> Tensor:
            return scores * 0

    data = data_of("linear")
    student = new_student(settings_of(False, "linear"), data, 1).eval()
    model = TaughtStudent(student, {"muted": Muted()}).eval()
    assert isinstance(student, SequenceStudent)
    representation = torch.randn(2, 8)
    scores = torch.randn(2, NUM_ITEMS)
    assert torch.equal(model.logits(representation, scores), student.logits(representation, scores * 0))


@pytest.mark.parametrize(
    ("teachers", "weight", "wrong"),
    [
        (("llm",), 0.2, []),
        (("titles",), 0.2, []),
        (("linear",), 0.0, []),
        (("linear",), 0.2, ["distill.ed_weight"]),
        (("lineer",), 0.0, ["distill.teachers"]),
        (("llm", "lineer"), 0.2, ["distill.teachers"]),
    ],
)
def test_teachers_are_checked_before_anything_is_trained(
    teachers: tuple[str, ...], weight: float, wrong: list[str]
) -> None:
    settings = replace(NOTHING, teachers=teachers, ed_weight=weight)
    expected = nullcontext() if not wrong else pytest.raises(ConfigError)
    with expected as caught:
        check_teachers(settings)
    assert [problem.field for problem in caught.value.problems] == wrong if caught else not wrong
