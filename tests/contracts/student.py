"""What every student that is trained by gradient descent promises. A student of your own runs the same suite::

from tests.contracts.student import StudentContract

class TestMyStudent(StudentContract):
    def settings(self) -> NetworkSettings:
        return student_of("my_module:factory", width=8)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from src.core.training import LoopSettings
from src.distill.parts import TaughtStudent
from src.distill.terms.item_embeddings import TeacherItemInput
from src.student.artefact import load_student, save_student
from src.student.base import SequenceStudent
from src.student.datamodule import StudentData
from src.student.models import build_student
from src.student.settings import EvaluationSettings, NetworkSettings
from src.student.trainer_baseline import train_student
from tests.fixtures import NUM_ITEMS, WINDOW, cycle_data

LOOP = LoopSettings(epochs=2, batch_size=16, monitor="ndcg_5")


def batch() -> tuple[Tensor, Tensor]:
    """Histories of every length, an empty one among them."""
    rows = StudentData.of(cycle_data(train=9), "cpu").train
    history = torch.cat([rows.history, torch.full((1, WINDOW), NUM_ITEMS)])
    return history, torch.cat([rows.length, torch.zeros(1, dtype=torch.int64)])


class StudentContract:
    """Subclass in a test module, name it ``Test...``, and say in `settings` which student is meant.

    ``window``: whether the window's size is a part of the model, so that more padding makes it another one (Caser);
    ``trivial``: whether it is too small to tell histories apart (a LayerNorm over one unit is constant).
    """

    window = False
    trivial = False

    def settings(self) -> NetworkSettings:
        """A small student, with a window of 0 (the dataset's) and without a prior."""
        raise NotImplementedError

    def student(self) -> SequenceStudent:
        """Every parameter random: a fresh norm or bias could hide a mistake."""
        torch.manual_seed(3)
        built = build_student(self.settings(), NUM_ITEMS, WINDOW)
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.copy_(torch.randn_like(parameter) / 2)
        return built.eval()

    @torch.no_grad()
    def test_logits_cover_the_catalogue_and_nothing_else(self) -> None:
        logits = self.student()(*batch())
        assert logits.shape == (10, NUM_ITEMS)
        assert bool(torch.isfinite(logits).all())

    @torch.no_grad()
    def test_a_row_does_not_depend_on_its_batch(self) -> None:
        history, length = batch()
        student = self.student()
        together = student(history, length)
        order = torch.randperm(len(history))
        assert torch.allclose(student(history[order], length[order]), together[order], atol=1e-6)
        alone = torch.cat([student(history[row : row + 1], length[row : row + 1]) for row in range(len(history))])
        assert torch.allclose(alone, together, atol=1e-6)

    @torch.no_grad()
    def test_a_batch_of_one_keeps_its_axis(self) -> None:
        history, length = batch()
        student = self.student()
        assert student(history[:1], length[:1]).shape == (1, NUM_ITEMS)
        assert student.encode(history[:1], length[:1]).shape == (1, student.representation)

    @torch.no_grad()
    def test_a_real_item_counts(self) -> None:
        """The counterpart of padding invariance: a student that ignores its history would pass that one, too."""
        history, length = batch()
        student = self.student()
        other = history.clone()
        other[0, 0] = (other[0, 0] + 5) % NUM_ITEMS
        changed = (student(other, length) - student(history, length)).abs().amax(dim=1)
        assert changed[1:].max() == 0
        assert changed[0] > 0 or self.trivial

    @torch.no_grad()
    def test_the_padding_row_of_the_table_is_not_read_by_a_history_with_items(self) -> None:
        history, length = batch()
        student = self.student()
        filled = length > 0
        before = student(history[filled], length[filled])
        student.item_embeddings.weight[NUM_ITEMS] += 100.0
        assert torch.equal(student(history[filled], length[filled]), before)

    @torch.no_grad()
    def test_the_teachers_part_at_padded_places_is_not_read(self) -> None:
        history, length = batch()
        student = self.student()
        filled = length > 0
        history, length = history[filled], length[filled]
        extra = torch.randn(len(history), WINDOW, student.item_embeddings.embedding_dim)
        noisy = torch.where((history == NUM_ITEMS).unsqueeze(2), extra * 50, extra)
        assert torch.equal(student(history, length, extra), student(history, length, noisy))
        assert self.trivial or not torch.equal(student(history, length, extra), student(history, length))

    @torch.no_grad()
    def test_a_wider_window_of_padding_changes_nothing(self) -> None:
        """Three more padded places, with parameters of their own where a student has some for each place."""
        if self.window:
            pytest.skip("its window is part of the model")
        student = self.student()
        wide = build_student(self.settings(), NUM_ITEMS, WINDOW + 3).eval()
        state, grown = student.state_dict(), wide.state_dict()
        for name, value in state.items():
            if value.shape == grown[name].shape:
                grown[name] = value
            else:
                grown[name][tuple(slice(0, size) for size in value.shape)] = value
        wide.load_state_dict(grown)
        history, length = batch()
        filled = length > 0
        padding = torch.full((len(history), 3), NUM_ITEMS)
        wider = wide(torch.cat([history, padding], dim=1)[filled], length[filled])
        narrow = student(history[filled], length[filled])
        assert torch.allclose(wider, narrow, atol=1e-6)

    @torch.no_grad()
    def test_of_a_longer_history_the_latest_items_count(self) -> None:
        history, length = batch()
        older = torch.arange(3).repeat(len(history), 1)
        full = length == WINDOW
        longer = torch.cat([older, history], dim=1)[full]
        student = self.student()
        assert torch.equal(student(longer, length[full] + 3), student(history[full], length[full]))

    @torch.no_grad()
    def test_saved_and_loaded_it_gives_the_same_logits(self, tmp_path: Path) -> None:
        data, student, settings = cycle_data(), self.student(), self.settings()
        save_student(tmp_path / "student", student, settings, data.id_map, data.fingerprints(), {})
        loaded, loaded_settings = load_student(tmp_path / "student", data)
        assert loaded_settings == settings
        assert torch.equal(loaded(*batch()), student(*batch()))
        assert not loaded.training

    @pytest.mark.parametrize("loss", ["ce", "bce"])
    def test_a_seed_repeats_a_run_bit_by_bit_whatever_ran_before(self, loss: str) -> None:
        data = StudentData.of(cycle_data(), "cpu")
        chosen = replace(self.settings(), loss=cast(Any, loss), loop=LOOP)
        evaluation = EvaluationSettings(ks=(5,))
        first = train_student(chosen, evaluation, data, seed=1)
        torch.rand(17)
        again, other = (train_student(chosen, evaluation, data, seed=seed) for seed in (1, 2))
        assert first.fit.history == again.fit.history
        state, repeated = first.student.state_dict(), again.student.state_dict()
        assert all(torch.equal(state[name], repeated[name]) for name in state)
        name = "item_embeddings.weight"
        assert not torch.equal(state[name], other.student.state_dict()[name])

    @torch.no_grad()
    @pytest.mark.parametrize("known", [NUM_ITEMS, NUM_ITEMS - 4])
    def test_folding_the_teachers_items_keeps_the_logits(self, known: int) -> None:
        """Also where the teacher's table has fewer rows than there are items."""
        student = self.student()
        torch.manual_seed(5)
        item_input = TeacherItemInput(torch.randn(known, 6), NUM_ITEMS, student.item_embeddings.embedding_dim, 0.7)
        history, length = batch()
        taught = TaughtStudent(student, {"item_input": item_input}).eval()
        before = taught(history, length)
        assert torch.allclose(taught.fold()(history, length), before, atol=1e-5)
