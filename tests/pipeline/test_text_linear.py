"""From stages to artefacts: what is computed from texts carries what scores a new item, and a prior has a budget."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from src.data.item_text import TextSource
from src.pipeline.stages import Stages
from src.student.artefact import load_student, text_source_of
from src.student.base import SequenceStudent
from src.student.models import student_settings
from src.student.new_items import takes_items, with_items
from src.tuning.shared_data import SharedData
from src.tuning.store import Store
from tests.pipeline.toy import toy_stages

SOURCE = TextSource("model", "f1", 32, "float32", "{title}")
WIDTH = 5


@pytest.fixture(autouse=True)
def texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings without a language model."""

    def embeddings(stages: Stages) -> Tensor:
        return torch.randn(stages.data.num_items, WIDTH, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(Stages, "_text_embeddings", property(embeddings))
    monkeypatch.setattr(Stages, "text_source", property(lambda stages: SOURCE))


def with_student(folder: Path, architecture: str, **fields: Any) -> Stages:
    """A small experiment with another student."""
    stages = toy_stages(folder)
    return Stages(replace(stages.settings, student=student_settings(architecture, **fields)), stages.cache)


def test_a_student_whose_prior_is_drawn_to_texts_takes_new_items(tmp_path: Path) -> None:
    stages = toy_stages(tmp_path, "student.prior=text_linear")
    assert stages.reads_text
    folder = stages.baseline.folder
    student, settings = load_student(folder, stages.data)
    assert isinstance(student, SequenceStudent)
    assert student.prior is not None
    assert takes_items(student)
    assert takes_items(student.prior)
    assert text_source_of(folder) == SOURCE
    grown = with_items(student, settings, torch.randn(2, WIDTH))
    history, length = torch.tensor([[0, 1, student.num_items + 1]]), torch.tensor([3])
    assert grown(history, length).shape == (1, student.num_items + 2)


def test_the_model_alone_is_a_student_and_its_settings_are_searched(tmp_path: Path) -> None:
    stages = with_student(tmp_path, "text_linear", text_weight=0.1, text_rarity=0.0)
    model, _ = load_student(stages.baseline.folder, stages.data)
    assert takes_items(model)
    plain, _ = load_student(with_student(tmp_path, "linear").baseline.folder, stages.data)
    assert not takes_items(plain)
    assert not torch.equal(model.weight, plain.weight)  # type: ignore[arg-type]
    tried = toy_stages(tmp_path, "baselines.trials=3").closed_form("text_linear")
    assert takes_items(load_student(tried.folder)[0])
    assert text_source_of(tried.folder) == SOURCE


def test_trials_read_the_texts_and_their_source(tmp_path: Path) -> None:
    stages = with_student(tmp_path, "text_linear")
    (tmp_path / "store").mkdir()
    store = Store(str(tmp_path / "store"))
    SharedData.of(stages.data, {}, None, stages.item_text, stages.text_source).save(store)
    with store.scratch() as scratch:
        loaded = SharedData.load(store.download("data", Path(scratch)), torch.device("cpu"))
        assert loaded.students.item_text is not None
        assert stages.item_text is not None
        assert torch.equal(loaded.students.item_text, stages.item_text)
        assert loaded.text_source == SOURCE
    assert with_student(tmp_path, "linear").item_text is None


@pytest.mark.parametrize("bound", ["student.prior_minutes=1e-9", "student.prior_gb=1e-9"])
def test_auto_takes_no_prior_that_costs_more_than_it_may(
    bound: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert toy_stages(tmp_path, bound, "student.prior=auto").prior_name == "none"
    assert "the prior would need about 0.0 minutes of one core" in caplog.text
    assert toy_stages(tmp_path, bound, "student.prior=linear").prior_name == "linear"
    assert toy_stages(tmp_path, "student.prior=auto").prior_name == "linear"
