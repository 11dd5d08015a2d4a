"""What every model without gradient descent promises. One of your own runs the same suite::

from tests.contracts.closed_form import ClosedFormContract

class TestMyModel(ClosedFormContract):
    def settings(self) -> StudentSettings:
        return student_settings("my_model")
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from src.core.errors import ConfigError
from src.student.artefact import load_student, save_student
from src.student.base import ClosedForm
from src.student.datamodule import StudentData
from src.student.models import architecture, build_closed_form, build_student, student_settings
from src.student.prior import fit_prior
from src.student.settings import EvaluationSettings, StudentSettings
from src.student.trainer_baseline import train_student
from tests.fixtures import NUM_ITEMS, WINDOW, cycle_data


def batch(width: int = WINDOW) -> tuple[Tensor, Tensor]:
    """Histories of every length, an empty one among them, padded to ``width``."""
    rows = StudentData.of(cycle_data(train=9), "cpu").train
    history = torch.full((10, width), NUM_ITEMS)
    history[:9, :WINDOW] = rows.history
    return history, torch.cat([rows.length, torch.zeros(1, dtype=torch.int64)])


class ClosedFormContract:
    """Subclass in a test module, name it ``Test...``, and say in `settings` which model is meant."""

    def settings(self) -> StudentSettings:
        """The model's settings."""
        raise NotImplementedError

    def data(self) -> StudentData:
        """Forty training rows over twelve items."""
        return StudentData.of(cycle_data(), "cpu", item_text=self.text())

    def text(self) -> Tensor:
        """An embedding of each item's text, for a model that reads them."""
        return torch.randn(NUM_ITEMS, 6, generator=torch.Generator().manual_seed(0))

    def new(self) -> ClosedForm:
        """The model, not fitted yet."""
        model = build_closed_form(self.settings(), NUM_ITEMS, WINDOW)
        model.item_text = self.text()
        return model

    def fitted(self) -> ClosedForm:
        """The model, fitted on all training rows."""
        data = self.data()
        model = self.new()
        model.fit(data.train, torch.arange(len(data.train)))
        return model.eval()

    @torch.no_grad()
    def test_scores_cover_the_catalogue_and_are_finite(self) -> None:
        scores = self.fitted()(*batch())
        assert scores.shape == (10, NUM_ITEMS)
        assert bool(torch.isfinite(scores).all())

    @torch.no_grad()
    def test_a_row_does_not_depend_on_its_batch_and_a_batch_of_one_keeps_its_axis(self) -> None:
        model, (history, length) = self.fitted(), batch()
        together = model(history, length)
        alone = [model(history[row : row + 1], length[row : row + 1]) for row in range(len(history))]
        assert all(scores.shape == (1, NUM_ITEMS) for scores in alone)
        assert torch.allclose(torch.cat(alone), together, atol=1e-6)

    @pytest.mark.parametrize("width", [WINDOW + 1, 40, 300])
    @torch.no_grad()
    def test_more_padding_changes_nothing(self, width: int) -> None:
        model = self.fitted()
        assert torch.allclose(model(*batch(width)), model(*batch()), atol=1e-5)

    @torch.no_grad()
    def test_items_beyond_the_window_are_not_read(self) -> None:
        model = self.fitted()
        items = torch.arange(model.window + 3).unsqueeze(0) % NUM_ITEMS
        changed = items.clone()
        changed[0, :3] = (changed[0, :3] + 5) % NUM_ITEMS
        length = torch.tensor([items.shape[1]])
        assert torch.equal(model(items, length), model(changed, length))

    def test_a_fit_repeats_and_leaves_its_data_alone(self) -> None:
        data, rows = self.data(), torch.arange(40)
        before = {name: tensor.clone() for name, tensor in data.train.tensors().items()}
        states = []
        for _ in range(2):
            model = self.new()
            model.fit(data.train, rows)
            states.append(model.state_dict())
        assert states[0].keys() == states[1].keys() != set()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        assert all(torch.equal(tensor, before[name]) for name, tensor in data.train.tensors().items())

    def test_only_the_given_rows_are_read(self) -> None:
        """Rows that are not named may hold anything: a prior's folds depend on it."""
        data = self.data()
        rows = torch.arange(0, 40, 2)
        models = []
        for target in (data.train.target, data.train.target.clone().index_fill_(0, rows + 1, 3)):
            train = type(data.train).of_tensors({**data.train.tensors(), "target": target})
            model = self.new()
            model.fit(train, rows)
            models.append(model)
        assert torch.equal(models[0](*batch()), models[1](*batch()))

    def test_no_row_and_rows_without_a_history_can_be_fitted(self) -> None:
        data = self.data()
        model = self.new()
        model.fit(data.train, torch.arange(0))
        assert bool(torch.isfinite(model(*batch())).all())
        nothing, target = torch.full((3, WINDOW), NUM_ITEMS), torch.tensor([1, 2, 1])
        empty = type(data.train).of_rows(nothing, torch.zeros(3, dtype=torch.int64), target, torch.arange(3))
        model.fit(empty, torch.arange(3))
        assert bool(torch.isfinite(model(*batch())).all())

    @torch.no_grad()
    def test_saved_and_loaded_it_gives_the_same_scores(self, tmp_path: Path) -> None:
        data, model, settings = cycle_data(), self.fitted(), self.settings()
        save_student(tmp_path / "student", model, settings, data.id_map, data.fingerprints(), {})
        loaded, loaded_settings = load_student(tmp_path / "student", data)
        assert loaded_settings == settings
        assert not loaded.training
        state, again = model.state_dict(), loaded.state_dict()
        assert all(torch.equal(state[name], again[name]) for name in state)
        assert torch.equal(loaded(*batch()), model(*batch()))

    def test_it_is_trained_as_any_student_in_one_epoch(self) -> None:
        reported = []
        run = train_student(
            self.settings(), EvaluationSettings(ks=(5,)), self.data(), seed=0,
            report=lambda epoch, metrics: reported.append((epoch, dict(metrics))),
        )  # fmt: skip
        assert reported == [(1, run.fit.best_metrics)]
        assert run.fit.epochs == run.fit.best_epoch == 1
        assert not run.student.training

    def test_it_can_be_a_networks_prior(self) -> None:
        data = self.data()
        prior = fit_prior(self.settings(), data.train, data.validation, NUM_ITEMS, 2, 0, self.text())
        assert (prior.train.shape, prior.validation.shape) == ((40, NUM_ITEMS), (10, NUM_ITEMS))
        assert bool(torch.isfinite(prior.train).all() and torch.isfinite(prior.validation).all())
        assert prior.scale > 0

    def test_it_is_no_network(self) -> None:
        settings = self.settings()
        with pytest.raises(ConfigError, match="is computed in closed form"):
            build_student(settings, NUM_ITEMS, WINDOW)  # type: ignore[arg-type]
        assert architecture(settings.architecture).closed_form

    def test_the_settings_that_a_comparison_tries_are_valid_and_differ(self) -> None:
        name = self.settings().architecture
        tried = [student_settings(name, **fields) for fields in architecture(name).build.settings_to_try]  # type: ignore[attr-defined]
        assert len(tried) == len({str(settings) for settings in tried}) >= 1
