"""Ridge regression in parts, in factors and drawn towards texts, against systems that are solved by hand or densely."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import src.student.ridge as ridge
from src.core.errors import ConfigError
from src.data.tensor_examples import TensorExamples
from src.student.architectures.linear import Linear, LinearSettings
from src.student.artefact import load_student, save_student
from src.student.base import ClosedForm
from src.student.closed_form_cost import fit_cost, prior_cost
from src.student.datamodule import StudentData
from src.student.decayed_history import DecayedHistory, history_times_history, history_times_target
from src.student.models import build_closed_form, student_settings
from src.student.new_items import with_items
from src.student.prior import _out_of_fold, fit_prior, folds_of
from src.student.settings import EvaluationSettings
from src.student.trainer_baseline import fit_closed_form
from tests.fixtures import NUM_ITEMS, cycle_data
from tests.student.test_closed_forms import LOGS, V, log_of, pre_split


def random_log(owners: int, items: int, seed: int = 0) -> TensorExamples:
    """Owners with histories of 1 to 9 items of a catalogue in which many items have one owner."""
    random = np.random.default_rng(seed)
    drawn = [(random.zipf(1.3, random.integers(2, 10)) * 7 % items).tolist() for _ in range(owners)]
    return replace(log_of(drawn, first_row=1), padding_id=items)


# ------------------------------------------------------------------------------------------------------- in parts


@pytest.mark.parametrize("name", LOGS)
def test_items_of_one_owner_are_found(name: str) -> None:
    train = LOGS[name]
    met: list[set[int]] = [set() for _ in range(V)]
    for end, earlier in zip(train.end.tolist(), train.earlier.tolist(), strict=True):
        for item in train.items[end - earlier : end].tolist():
            met[item].add(end - earlier)
    found = ridge.owners_of_items(train, torch.arange(len(train)), V).tolist()
    expected = [ridge.UNMET if not owners else ridge.SHARED if len(owners) > 1 else None for owners in met]
    assert [owner if owner < 0 else None for owner in found] == expected
    alone = [(owner, next(iter(owners))) for owner, owners in zip(found, met, strict=True) if len(owners) == 1]
    assert len({owner for owner, _ in alone}) == len({begin for _, begin in alone}) == len(set(alone))


@pytest.mark.parametrize("owners", [1, 3, 60])
def test_solved_in_parts_it_is_the_same_solution(owners: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the rounding of float64: users' own items are eliminated, items of nobody left out."""
    monkeypatch.setattr(ridge, "_SMALL", 0)
    train, items = random_log(owners, 50), 50
    rows = torch.arange(0, len(train), 2)
    gram = history_times_history(train, rows, items, 4, 0.8)
    right = torch.cat([history_times_target(train, rows, items, 4, 0.8), torch.randn(items, 3).double()], dim=1)
    owner = ridge.owners_of_items(train, rows, items)
    assert {ridge.UNMET, True} <= {kind if kind == ridge.UNMET else True for kind in owner.tolist()}
    expected = torch.linalg.solve(gram + 0.5 * torch.eye(items), right)
    assert torch.allclose(ridge.solve_ridge(gram.clone(), right, 0.5, owner), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "ease", "transitions"])
@pytest.mark.parametrize("folds", [2, 3, 5])
def test_what_is_left_of_everybodys_sums_is_a_fit_without_the_fold(name: str, folds: int) -> None:
    train = random_log(30, 25)
    fold = folds_of(train, folds, seed=0)

    def new() -> ClosedForm:
        return build_closed_form(student_settings(name), 25, 3)

    for part, model in enumerate(_out_of_fold(new, train, fold, folds)):
        alone = new()
        alone.fit(train, torch.nonzero(fold != part).squeeze(1))
        assert isinstance(model, DecayedHistory)
        assert isinstance(alone, DecayedHistory)
        assert torch.allclose(model.weight, alone.weight, rtol=1e-5, atol=1e-9)


# ----------------------------------------------------------------------------------------------- drawn towards texts

#: their mean is 0; of length 1 they are (1, 0), (-3/5, 4/5), (0, -1)
TEXTS = torch.tensor([[3.0, 0.0], [-3.0, 4.0], [0.0, -4.0]])


def drawn(train: TensorExamples, num_items: int, texts: Tensor, rarity: float = 1.0, l2: float = 1.0) -> Linear:
    """A linear model over a history of three items, drawn towards half of the texts' similarity."""
    settings = LinearSettings(window=3, decay=0.5, l2=l2, text_weight=0.5, text_rarity=rarity)
    model = Linear(settings, num_items, 3)
    model.item_text = texts
    model.fit(train, torch.arange(len(train)))
    return model


def test_three_items_by_hand() -> None:
    """One row, history [0] and target 1, λ = 1: (G + λ I)⁻¹ = diag(1/2, 1, 1). W₀ is half of the similarities -3/5
    (0 and 1), 0 (0 and 2), -4/5 (1 and 2), in column 1 halved again, because that item was a target once."""
    model = drawn(pre_split([[0]], [1]), 3, TEXTS)
    expected = torch.tensor(
        [[0, (1 - 3 / 20) / 2, 0], [-3 / 10, 0, -2 / 5], [0, -1 / 5, 0]],
    )
    assert torch.allclose(model.weight, expected, atol=1e-6)
    assert torch.allclose(model(torch.tensor([[0, 1]]), torch.tensor([2]))[0], expected[0] / 2 + expected[1], atol=1e-6)


def test_without_rarity_every_item_is_drawn_alike() -> None:
    model = drawn(pre_split([[0]], [1]), 3, TEXTS, rarity=0.0)
    assert float(model.weight[2, 1]) == pytest.approx(-2 / 5)
    assert float(model.weight[0, 1]) == pytest.approx((1 - 3 / 10) / 2)


def test_the_penalty_draws_to_the_texts_and_not_to_zero() -> None:
    model = drawn(LOGS["three owners"], V, torch.randn(V, 4), l2=1e9)
    assert model.from_text
    strength = model.from_text["strength"]
    towards = model.from_text["directions"] @ (model.from_text["directions"] * strength.unsqueeze(1)).T
    assert torch.allclose(model.weight, towards - towards.diagonal().diag(), atol=1e-5)


@pytest.mark.parametrize("rarity", [0.0, 1.0])
def test_an_added_item_is_what_a_fit_that_knew_it_would_give(rarity: float, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    texts, train = torch.randn(V + 2, 4), LOGS["three owners"]
    model = drawn(train, V, texts[:V], rarity)
    grown = with_items(model, model.settings, texts[V:])
    own = Linear._directions

    def around_the_old_mean(fitted: Linear) -> tuple[Tensor, Tensor]:
        shown, fitted.item_text = fitted.item_text, texts[:V]
        mean, _ = own(fitted)
        assert shown is not None
        return mean, torch.nn.functional.normalize(shown.double() - mean, dim=1)

    monkeypatch.setattr(Linear, "_directions", around_the_old_mean)
    whole = drawn(train, V + 2, texts, rarity)
    assert isinstance(grown, Linear)
    assert torch.allclose(grown.weight, whole.weight, atol=1e-6)
    assert all(torch.allclose(grown.from_text[name], whole.from_text[name], atol=1e-6) for name in whole.from_text)


def test_the_prior_of_a_fold_is_drawn_by_the_counts_of_the_others() -> None:
    data = StudentData.of(cycle_data(), "cpu")
    texts = torch.randn(NUM_ITEMS, 4)
    settings = student_settings("text_linear", text_weight=0.5, text_rarity=1.0)
    prior = fit_prior(settings, data.train, data.validation, NUM_ITEMS, 2, 0, texts)
    other = fit_prior(settings, data.train, data.validation, NUM_ITEMS, 2, 0, -2 * texts)
    assert torch.allclose(prior.train.float(), other.train.float(), atol=1e-2)  # the same similarities
    assert prior.model.from_text


def test_texts_that_are_not_there_are_told() -> None:
    data = StudentData.of(cycle_data(), "cpu")
    with pytest.raises(ConfigError, match=r"student.text_weight = 0.5: draws the weights towards texts"):
        fit_closed_form(LinearSettings(text_weight=0.5), EvaluationSettings(ks=(5,)), data)


# ---------------------------------------------------------------------------------------------------------- in factors


@pytest.mark.parametrize("name", LOGS)
def test_with_every_direction_the_factors_are_the_ridge(name: str) -> None:
    train, rows = LOGS[name], torch.arange(len(LOGS[name]))
    whole = Linear(LinearSettings(window=3, decay=0.6, l2=0.5), V, 3)
    factors = Linear(LinearSettings(window=3, decay=0.6, l2=0.5, max_items=2, rank=V), V, 3)
    for model in (whole, factors):
        model.fit(train, rows)
    assert torch.allclose(factors.left @ factors.right, whole.weight, atol=1e-4)
    history, length = train.read(rows)
    assert torch.allclose(factors(history, length), whole(history, length), atol=1e-4)
    items = torch.tensor([[0, 3]] * len(rows))
    assert torch.allclose(factors.score_items(history, length, items), factors(history, length).gather(1, items))


def test_fewer_directions_keep_what_differs_most(tmp_path: Path) -> None:
    """Two groups of items that never meet, the first in nine of ten rows: one direction holds the first group."""
    train = pre_split([[0, 1]] * 9 + [[4]], [2] * 9 + [5])
    model = Linear(LinearSettings(window=2, decay=1.0, l2=0.1, max_items=2, rank=1), V, 3)
    model.fit(train, torch.arange(10))
    scores = model(torch.tensor([[0, 1], [4, V]]), torch.tensor([2, 1]))
    assert float(scores[0, 2]) == pytest.approx(18 / 18.1, abs=1e-3)
    assert float(scores[1].abs().max()) < 1e-3
    data = cycle_data(num_items=V)
    save_student(tmp_path / "student", model, model.settings, data.id_map, data.fingerprints(), {})
    loaded, _ = load_student(tmp_path / "student", data)
    assert torch.equal(loaded(torch.tensor([[0, 1]]), torch.tensor([2])), scores[:1])


def test_a_large_catalogue_is_scored_without_a_weight_for_each_pair() -> None:
    model = Linear(LinearSettings(max_items=1000, rank=4), 200_000, 3)
    assert {tuple(buffer.shape) for buffer in model.buffers()} == {(200_000, 4), (4, 200_000)}
    assert not model.settings.too_large(200_000)
    assert LinearSettings(max_items=1000, text_weight=0.1).too_large(1001)


# ------------------------------------------------------------------------------------------------------------ its cost


def test_a_fit_costs_a_third_plus_two_times_the_cube_of_what_was_met() -> None:
    cost = fit_cost(10_000, 6_000)
    assert cost.seconds == pytest.approx(7 / 3 * 6_000**3 / 20e9)
    assert cost.memory == 5 * 8 * 10_000**2
    prior = prior_cost(10_000, 6_000, 1_000, 10, folds=4)
    assert prior.seconds > 5 * cost.seconds
    # two more sums, and a model of each of four folds
    assert prior.memory == cost.memory + (16 + 16) * 10_000**2 + 2 * 1_000 * 10_000
    assert str(fit_cost(10_000, 6_000)) == "about 0.4 minutes of one core and 3.7 GB"
