"""A prior in closed form: fitted out of fold, scaled to the targets, added to a network, saved with it."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from src.core.checkpoints import NoCheckpoint
from src.core.errors import ArtefactError, ConfigError
from src.core.training import LoopSettings
from src.data.examples import Examples, Histories
from src.data.tensor_examples import TensorExamples
from src.student.artefact import load_student, save_student
from src.student.base import SequenceStudent
from src.student.datamodule import StudentData
from src.student.evaluator import evaluate_model
from src.student.models import student_settings
from src.student.prior import (
    MAX_BYTES,
    best_scale,
    fit_prior,
    folds_of,
    load_prior,
    require_prior_fits,
    save_prior,
)
from src.student.settings import EvaluationSettings, NetworkSettings
from src.student.trainer_baseline import new_student, optimiser_for, train_student
from tests.dying import DyingCheckpoint, Killed
from tests.fixtures import NUM_ITEMS, WINDOW, cycle_data, student_of
from tests.memory_maps import lies_in

EVALUATION = EvaluationSettings(ks=(1, 5))
USERS = 10


def small(architecture: str = "transformer", **changes: Any) -> NetworkSettings:
    """A student with dropout and a running mean that trains in a moment."""
    loop = LoopSettings(epochs=2, batch_size=16, monitor="ndcg_5", ema=0.9)
    options: dict[str, Any] = {"width": 8, "dropout": 0.3, "loop": loop, "prior": "linear", "window": 0, **changes}
    return student_of(architecture, **options)


def data_with(prior: str = "linear", folds: int = 2) -> StudentData:
    """Forty rows over twelve items, and a prior."""
    bare = StudentData.of(cycle_data(), "cpu")
    return replace(bare, prior=fit_prior(student_settings(prior), bare.train, bare.validation, NUM_ITEMS, folds, 0))


@pytest.fixture(scope="module")
def data() -> StudentData:
    return data_with()


def habits() -> TensorExamples:
    """Ten users, each with a pair of items that nobody else has in this order: u, u + 1, u, u + 1."""
    items = np.array([[u, u + 1, u, u + 1] for u in range(USERS)], np.int32).reshape(-1)
    end = np.array([4 * u + place for u in range(USERS) for place in (1, 3)], np.int64)
    earlier = np.array([1, 3] * USERS, np.int64)
    ids = np.arange(len(end), dtype=np.int64)
    past = Histories(items, end, earlier, USERS + 1)
    return TensorExamples.of(Examples(ids, ids // 2, past, 4, items[end].astype(np.int64), ids.astype(float)), "cpu")


# ------------------------------------------------------------------------------------------------------- out of fold


@pytest.mark.parametrize("folds", [2, 3, 10])
def test_all_rows_of_a_user_are_in_one_fold_and_folds_are_even(folds: int) -> None:
    fold = folds_of(habits(), folds, seed=0)
    assert torch.equal(fold[0::2], fold[1::2])
    sizes = torch.bincount(fold, minlength=folds)
    assert int(sizes.max() - sizes.min()) <= 2
    assert torch.equal(fold, folds_of(habits(), folds, seed=0))
    assert not torch.equal(fold, folds_of(habits(), folds, seed=1))


@pytest.mark.parametrize("folds", [2, 5, 10, 20])
def test_a_training_row_does_not_know_what_its_own_user_did(folds: int) -> None:
    """Whoever learns from user u alone knows u → u + 1; whoever does not cannot. Also with more folds than users."""
    train = habits()
    settings = student_settings("transitions", decay=1.0, count_decay=1.0)
    prior = fit_prior(settings, train, train, USERS + 1, folds, seed=0)
    rows = torch.arange(len(train))
    in_sample, out_of_fold = prior.validation[rows, train.target], prior.train[rows, train.target]
    assert float(in_sample.min()) > 0
    # of what the others did, u + 1 → u + 2 is the only step that touches these items, and u + 1 → u is u's own
    assert float(out_of_fold.abs().max()) == 0
    assert float(prior.train.float().abs().max()) > 0


def test_a_pair_that_others_share_is_known(data: StudentData) -> None:
    """The counterpart: in the cycle every row's next item is everybody's."""
    settings = student_settings("transitions", window=1)
    prior = fit_prior(settings, data.train, data.validation, NUM_ITEMS, 2, 0)
    own = prior.train.float()[torch.arange(40), data.train.target]
    assert float((own >= prior.train.float().amax(dim=1)).float().mean()) > 0.8


# ------------------------------------------------------------------------------------------------------------- scale


def test_the_scale_is_where_the_likelihood_peaks() -> None:
    """Three of four rows choose the item with score 1 over that with 0: softmax(s) = 3/4, so s = ln 3."""
    scores = torch.tensor([[1.0, 0.0]] * 4)
    assert best_scale(scores, torch.tensor([0, 0, 0, 1])) == pytest.approx(math.log(3), rel=0.01)
    assert best_scale(scores * 1000, torch.tensor([0, 0, 0, 1])) == pytest.approx(math.log(3) / 1000, rel=0.01)


def test_no_other_scale_is_better() -> None:
    torch.manual_seed(0)
    scores, target = torch.randn(200, 9), torch.randint(0, 9, (200,))
    scores[torch.arange(200), target] += 1.5

    def loss(scale: float) -> float:
        return float(torch.nn.functional.cross_entropy(scores * scale, target))

    best = best_scale(scores, target)
    assert all(loss(best) <= loss(best * factor) for factor in (0.5, 0.9, 0.98, 1.02, 1.1, 2.0))


def test_scores_that_say_nothing_have_a_scale_too() -> None:
    found = best_scale(torch.zeros(5, 3), torch.tensor([0, 1, 2, 0, 1]))
    assert 0 < found < math.inf


# -------------------------------------------------------------------------------------------------- added to a network


@torch.no_grad()
def test_logits_are_the_networks_plus_what_the_prior_says(data: StudentData) -> None:
    assert data.prior is not None
    student = new_student(small(), data, 3).eval()
    bare = new_student(small(prior="none"), data, 3).eval()
    assert student.prior_gain is not None
    assert float(student.prior_gain) == 1.0
    student.prior_gain.fill_(0.4)
    history, length = data.validation.history, data.validation.length
    expected = bare(history, length) + 0.4 * data.prior.scale * data.prior.model(history, length)
    assert torch.allclose(student(history, length), expected, atol=1e-6)
    items = torch.tensor([[0, 5]] * len(history))
    few = student.score_items(student.encode(history, length), items, student.prior_scores(history, length))
    assert torch.allclose(few, expected.gather(1, items), atol=1e-6)


@torch.no_grad()
def test_a_prior_reads_further_back_than_the_network(data: StudentData) -> None:
    student = new_student(small(window=2), data, 3).eval()
    assert (student.window, student.history_length) == (2, 100)
    history, length = torch.tensor([[1, 2, 3, 4]]), torch.tensor([4])
    other = torch.tensor([[9, 2, 3, 4]])
    assert torch.equal(student.encode(*student.seen(history, length)), student.encode(*student.seen(other, length)))
    assert not torch.equal(student(history, length), student(other, length))


def test_the_prior_is_no_parameter_and_in_no_state(data: StudentData) -> None:
    student, bare = new_student(small(), data, 3), new_student(small(prior="none"), data, 3)
    assert set(student.state_dict()) - set(bare.state_dict()) == {"prior_gain"}
    trained = [p for group in optimiser_for(student, small(), student).param_groups for p in group["params"]]
    assert len(trained) == len(list(bare.parameters())) + 1
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in bare.state_dict().items())


def test_the_prior_moves_with_its_student() -> None:
    data = data_with()
    student = new_student(small(), data, 3).to(torch.float64)
    assert student.prior is not None
    assert {buffer.dtype for buffer in student.prior.buffers()} == {torch.float64}
    student.to("meta")
    assert student.prior.device.type == student.device.type == "meta"


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_a_training_with_a_prior_repeats_bit_by_bit(loss: str) -> None:
    runs = [train_student(small(loss=loss), EVALUATION, data_with(), seed=5) for _ in range(2)]
    assert runs[0].fit.history == runs[1].fit.history
    first, second = (run.student.state_dict() for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert float(first["prior_gain"]) != 1.0  # it is learned


def test_what_was_computed_once_is_what_the_student_would_compute(data: StudentData) -> None:
    run = train_student(small(), EVALUATION, data, seed=5)
    metrics = evaluate_model(run.student, data.validation, EVALUATION)
    assert metrics == {name: run.fit.best_metrics[name] for name in metrics}


def test_saved_and_loaded_it_gives_the_same_logits(data: StudentData, tmp_path: Path) -> None:
    source = cycle_data()
    run = train_student(small(), EVALUATION, data, seed=5)
    save_student(tmp_path / "student", run.student, small(), source.id_map, source.fingerprints(), {})
    loaded, settings = load_student(tmp_path / "student", source)
    assert settings == small()
    history, length = data.validation.read(torch.arange(10), run.student.history_length)
    assert torch.equal(loaded(history, length), run.student.eval()(history, length))
    assert isinstance(loaded, SequenceStudent)
    assert loaded.prior is not None
    assert loaded.history_length == run.student.history_length


@pytest.mark.skipif(sys.platform != "linux", reason="reads how Linux tells of a process's memory")
def test_a_loaded_students_prior_stays_in_its_file(data: StudentData, tmp_path: Path) -> None:
    run, source = train_student(small(), EVALUATION, data, seed=5), cycle_data()
    save_student(tmp_path / "student", run.student, small(), source.id_map, source.fingerprints(), {})
    loaded = load_student(tmp_path / "student")[0]
    assert isinstance(loaded, SequenceStudent)
    assert loaded.prior is not None
    (weight,) = loaded.prior.buffers()
    # a comparison of arms and seeds holds dozens of students: a copy of V² numbers each is more than a machine has
    assert lies_in(weight, tmp_path / "student" / "prior" / "model.safetensors")


def test_a_prior_is_saved_and_comes_back(data: StudentData, tmp_path: Path) -> None:
    assert data.prior is not None
    save_prior(tmp_path, data.prior)
    loaded = load_prior(tmp_path, "cpu")
    assert (loaded.scale, loaded.settings) == (data.prior.scale, data.prior.settings)
    assert torch.equal(loaded.train, data.prior.train)
    assert loaded.train.dtype == torch.float16
    assert torch.equal(loaded.validation, data.prior.validation)
    history, length = data.validation.history, data.validation.length
    assert torch.equal(loaded.model(history, length), data.prior.model(history, length))


# ------------------------------------------------------------------------------------------------------------ resumed


class Recording(NoCheckpoint):
    """Keeps the last state that was saved."""

    state: Mapping[str, Any] = {}

    def save(self, state: Mapping[str, Any]) -> None:
        self.state = state


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor of a nested state."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def test_a_checkpoint_holds_no_prior(data: StudentData) -> None:
    checkpoint = Recording()
    train_student(small(), EVALUATION, data, seed=5, checkpoint=checkpoint)
    shapes = [tuple(tensor.shape) for tensor in tensors_in(checkpoint.state)]
    assert (NUM_ITEMS + 1, 8) in shapes
    assert (NUM_ITEMS, NUM_ITEMS) not in shapes
    assert (40, NUM_ITEMS) not in shapes


@pytest.mark.parametrize("after", [1, 2, 4, 5])
def test_a_training_killed_within_an_epoch_goes_on_to_the_same_student(data: StudentData, after: int) -> None:
    loop = LoopSettings(epochs=2, batch_size=16, monitor="ndcg_5", ema=0.9, checkpoint_minutes=1e-9)
    settings = small(loop=loop, loss="bce", negatives=2)
    whole, checkpoint = train_student(settings, EVALUATION, data, seed=5), DyingCheckpoint(after)
    with pytest.raises(Killed):
        train_student(settings, EVALUATION, data, seed=5, checkpoint=checkpoint)
    again = train_student(settings, EVALUATION, data, seed=5, checkpoint=checkpoint)
    assert again.fit.history == whole.fit.history
    first, second = whole.student.state_dict(), again.student.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


# ------------------------------------------------------------------------------------------------------------ refused


def test_a_named_prior_that_was_not_fitted_is_told() -> None:
    bare = StudentData.of(cycle_data(), "cpu")
    with pytest.raises(ArtefactError, match="student.prior = 'linear': was not fitted before"):
        new_student(small(prior="linear"), bare, 0)


def test_auto_is_none_where_the_catalogue_allowed_none() -> None:
    bare = StudentData.of(cycle_data(), "cpu")
    assert new_student(small(prior="auto"), bare, 0).prior is None


def test_a_prior_that_does_not_fit_is_refused_with_its_size() -> None:
    with pytest.raises(ConfigError, match=r"student.prior = linear = 11: is computed for at most 10 items"):
        require_prior_fits(10, student_settings("linear", max_items=10, rank=0), 11)
    rows = MAX_BYTES // 2 // 1000
    require_prior_fits(rows, student_settings("linear"), 1000)
    with pytest.raises(ConfigError, match="need 8 GB"):
        require_prior_fits(rows + 1, student_settings("linear"), 1000)


def test_a_network_is_no_prior(data: StudentData) -> None:
    with pytest.raises(ConfigError, match="is no model in closed form"):
        fit_prior(student_settings("gru4rec"), data.train, data.validation, NUM_ITEMS, 2, 0)
    assert data.history_length == WINDOW
