"""From stages to artefacts: what is computed from texts carries what scores a new item, and a prior has a budget."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from src.config.overrides import format_value
from src.core.errors import ArtefactError, ConfigError
from src.core.paths import REPOSITORY
from src.data.item_text import TextSource
from src.distill.settings import terms
from src.pipeline.preflight import check_experiment
from src.pipeline.runs import distil, run_distill
from src.pipeline.stages import Stages
from src.student.architectures.text_linear import TextLinearSettings
from src.student.artefact import load_student, text_source_of
from src.student.base import Recommender, SequenceStudent
from src.student.models import require_network, student_settings
from src.student.new_items import takes_items, with_items
from src.tuning.preflight import prepare_space, trial_priors
from src.tuning.search_space import CategoricalParameter, SearchSpace
from src.tuning.settings import TuningSettings
from src.tuning.shared_data import SharedData
from src.tuning.store import Store
from tests.fixtures import student_of
from tests.pipeline.toy import new_run, toy_settings, toy_stages, write_given_outputs

SOURCE = TextSource("model", "f1", 32, "float32", "{title}")
WIDTH = 5
EITHER: dict[str, Any] = {"type": "categorical", "choices": [False, True]}


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


def no_terms() -> list[str]:
    """Overrides that switch every term off."""
    off = {key: value for term in terms() for key, value in term.off(student_of()).items()}
    return [f"distill.{key}={format_value(value)}" for key, value in off.items()]


def assert_same_weights(one: Recommender, other: Recommender) -> None:
    """Equal to the last bit, with equal priors."""
    assert isinstance(one, SequenceStudent)
    assert isinstance(other, SequenceStudent)
    assert one.prior is not None
    assert other.prior is not None
    for own, others in ((one, other), (one.prior, other.prior)):
        own_state, other_state = own.state_dict(), others.state_dict()
        assert list(own_state) == list(other_state)
        assert all(torch.equal(own_state[name], other_state[name]) for name in own_state)


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


def test_a_term_puts_the_prior_drawn_to_texts_in_place_of_the_students_own(tmp_path: Path) -> None:
    given = f"distill.outputs_from={write_given_outputs(tmp_path / 'given', toy_stages(tmp_path).data)}"
    own = [given, *no_terms(), "student.prior=linear"]
    stages = toy_stages(tmp_path, *own, "distill.text_prior=true")
    assert stages.reads_text
    assert stages.closed_form_names == ("popularity", "text_linear")
    taught = distil(stages).student
    as_prior = load_student(toy_stages(tmp_path, "student.prior=text_linear").baseline.folder)[0]
    # the term is another prior and nothing else: the student that has it alone is the same to the last bit
    assert_same_weights(taught, as_prior)
    assert_same_weights(distil(toy_stages(tmp_path, *own)).student, load_student(stages.baseline.folder)[0])
    run_distill(stages, new_run(tmp_path / "run"))
    saved, settings = load_student(tmp_path / "run" / "best_student", stages.data)
    assert settings == replace(require_network(stages.settings.student), prior="text_linear")
    assert_same_weights(saved, as_prior)
    assert takes_items(saved)


def test_trials_have_the_prior_that_their_term_asks_for(tmp_path: Path) -> None:
    stages = toy_stages(tmp_path, "student.prior=linear")
    space = SearchSpace("distill", {"ndcg_20": "maximize"}, {"distill.text_prior": CategoricalParameter(**EITHER)})
    assert trial_priors(stages.settings, space) == ("text_linear",)
    stages = Stages(stages.settings, stages.cache, ("text_linear",))
    (tmp_path / "store").mkdir()
    store = Store(str(tmp_path / "store"))
    SharedData.of(stages.data, {}, stages.prior, stages.item_text, SOURCE, stages.other_priors).save(store)
    with store.scratch() as scratch:
        loaded = SharedData.load(store.download("data", Path(scratch)), torch.device("cpu")).students
        assert loaded.prior is not None
        assert loaded.prior.settings.architecture == "linear"
        other = loaded.with_prior("text_linear").prior
        assert other is not None
        assert torch.equal(other.train, stages.other_priors["text_linear"]().train)
        assert loaded.with_prior("text_linear").prior is other  # members of a population share its scores
        with pytest.raises(ArtefactError, match="was not fitted"):
            loaded.with_prior("ease")


@pytest.mark.parametrize("prior", ["none", "text_linear"])
def test_there_must_be_a_prior_in_whose_place_another_one_stands(tmp_path: Path, prior: str) -> None:
    given = f"distill.outputs_from={write_given_outputs(tmp_path / 'given', toy_stages(tmp_path).data)}"
    settings = toy_settings(tmp_path, given, *no_terms(), f"student.prior={prior}", "distill.text_prior=true")
    with pytest.raises(ConfigError, match="takes the place of the student's prior"):
        check_experiment(settings, teacher=True)
    fair = TuningSettings()
    document = tmp_path / "space.yaml"
    document.write_text((REPOSITORY / "search_spaces" / "fair.yaml").read_text())
    asked = toy_settings(tmp_path, *no_terms(), f"student.prior={prior}")
    assert "distill.text_prior" not in prepare_space(asked, fair, "distill", "fair").parameters
    with pytest.raises(ConfigError, match="takes the place of the student's prior"):
        prepare_space(asked, replace(fair, search_space=document), "distill", "fair")
    with_linear = toy_settings(tmp_path, *no_terms(), "student.prior=linear")
    assert "distill.text_prior" in prepare_space(with_linear, fair, "distill", "fair").parameters


def test_a_prior_that_does_not_fit_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextLinearSettings, "too_large", lambda settings, num_items: True)
    given = f"distill.outputs_from={write_given_outputs(tmp_path / 'given', toy_stages(tmp_path).data)}"
    settings = toy_settings(tmp_path, given, *no_terms(), "student.prior=linear", "distill.text_prior=true")
    with pytest.raises(ConfigError, match=r"distill.text_prior = .text_linear.: is computed for at most 20000 items"):
        check_experiment(settings, teacher=True)


@pytest.mark.parametrize("bound", ["student.prior_minutes=1e-9", "student.prior_gb=1e-9"])
def test_auto_takes_no_prior_that_costs_more_than_it_may(
    bound: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert toy_stages(tmp_path, bound, "student.prior=auto").prior_name == "none"
    assert "the prior would need about 0.0 minutes of one core" in caplog.text
    assert toy_stages(tmp_path, bound, "student.prior=linear").prior_name == "linear"
    assert toy_stages(tmp_path, "student.prior=auto").prior_name == "linear"
