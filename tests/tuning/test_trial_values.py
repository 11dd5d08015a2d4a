"""Searched values in settings, and the no-distillation point from which every search starts."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from src.config.reading import read_settings
from src.pipeline.settings import ExperimentSettings
from src.tuning.journal import open_journal
from src.tuning.search_settings import TuneSettings, experiment
from src.tuning.search_space import CategoricalParameter, FloatParameter, IntParameter, SearchSpace
from src.tuning.settings import TuningSettings
from src.tuning.study import Record
from src.tuning.trial_values import apply_values, fitting, neutral_trial, no_distillation, trial_values


def settings_with(*overrides: str) -> ExperimentSettings:
    return experiment(read_settings("tune", list(overrides), TuneSettings)[0])


@pytest.fixture(scope="module")
def settings() -> ExperimentSettings:
    return settings_with()


def test_values_change_their_keys_and_nothing_else(settings: ExperimentSettings) -> None:
    changed = apply_values(settings, {"distill.lam": 0.25, "student.loop.epochs": 3, "active.policy": "kl_divergence"})
    assert (changed.distill.lam, changed.student.loop.epochs, changed.active.policy) == (0.25, 3, "kl_divergence")
    back = apply_values(changed, {"distill.lam": 0.5, "student.loop.epochs": 30, "active.policy": "all"})
    assert back == settings


def test_a_combination_that_breaks_a_rule_is_refused(settings: ExperimentSettings) -> None:
    gammas = {f"distill.gamma_{name}": 0.0 for name in ("position", "confidence", "consistency")}
    with pytest.raises(ValidationError, match="must not all be 0"):
        apply_values(settings, gammas)


def test_the_neutral_point_is_the_baselines_own_loss() -> None:
    settings = settings_with("student.dro_weight=0.3", "student.dro_beta=2.0", "distill.ce_loss_weight=0.7")
    assert no_distillation(settings) == {
        "distill.lam": 0.0,
        "distill.alpha": 0.3,
        "distill.ed_weight": 0.0,
        "distill.ce_loss_weight": 1.0,
        "distill.embedding_loss_weight": 0.0,
        "distill.beta": 2.0,
        "distill.soft_weight": 0.0,
        "distill.rce_weight": 0.0,
        "distill.text_weight": 0.0,
        "distill.text_start": 0.0,
        "distill.text_prior": False,
    }


def test_the_first_trial_switches_off_what_is_not_searched_either() -> None:
    settings = settings_with("distill.embedding_loss_weight=0.5", "distill.ce_loss_weight=0.7")
    first = apply_values(settings, trial_values("distill", settings, 0, {"distill.temperature": 2.0})).distill
    assert (first.lam, first.alpha, first.ed_weight, first.embedding_loss_weight, first.ce_loss_weight) == (
        0,
        0,
        0,
        0,
        1,
    )
    assert first.temperature == 2.0
    second = apply_values(settings, trial_values("distill", settings, 1, {"distill.lam": 0.9})).distill
    assert (second.lam, second.alpha, second.embedding_loss_weight, second.ce_loss_weight) == (0.9, 0.1, 0.5, 0.7)


def test_the_first_trials_values(settings: ExperimentSettings) -> None:
    space = SearchSpace(
        "distill",
        {"ndcg_20": "maximize"},
        {
            "distill.lam": FloatParameter(type="float", low=0.0, high=1.0),
            "distill.temperature": FloatParameter(type="float", low=2.0, high=4.0),  # the config's 1.0 lies outside
            "distill.gamma_position": FloatParameter(type="float", low=0.0, high=1.0, step=0.25),  # 0.3 is off the grid
            "student.learning_rate": CategoricalParameter(type="categorical", choices=[0.01, 0.003]),
            "active.policy": CategoricalParameter(type="categorical", choices=["kl_divergence", "all"]),
            "active.kl_threshold": FloatParameter(
                type="float", low=0.1, high=1.0, when={"active.policy": "kl_divergence"}
            ),
            "active.rank_threshold": IntParameter(type="int", low=1, high=50, when={"active.policy": "all"}),
        },
    )
    assert neutral_trial(space, settings) == {
        "distill.lam": 0.0,
        "distill.temperature": 2.0,
        "distill.gamma_position": 0.0,
        "student.learning_rate": 0.003,
        "active.policy": "all",
        "active.rank_threshold": 20,
    }


def test_the_first_trials_values_can_be_enqueued(settings: ExperimentSettings, tmp_path) -> None:
    space = SearchSpace(
        "distill",
        {"ndcg_20": "maximize"},
        {"distill.gamma_position": FloatParameter(type="float", low=0.0, high=1.0, step=0.25)},
    )
    first = neutral_trial(space, settings)
    record = Record.open(open_journal(tmp_path), "search", space, TuningSettings(), 0, 9, "identity", [first])
    assert record.ask().params == {"distill.gamma_position": 0.0}


def test_an_earlier_trial_as_a_point_of_another_space() -> None:
    space = SearchSpace(
        "distill",
        {"ndcg_20": "maximize"},
        {
            "student.dropout": FloatParameter(type="float", low=0.0, high=0.5),
            "distill.lam": FloatParameter(type="float", low=0.0, high=1.0),
            "active.policy": CategoricalParameter(type="categorical", choices=["kl_divergence", "all"]),
            "active.kl_threshold": FloatParameter(
                type="float", low=0.1, high=1.0, when={"active.policy": "kl_divergence"}
            ),
        },
    )
    earlier = {"student.dropout": 0.3, "student.learning_rate": 0.01, "distill.lam": 7.0, "active.kl_threshold": 0.2}
    # lam lies outside, the threshold's condition is not met, the learning rate is not searched here
    assert fitting(space, earlier) == {"student.dropout": 0.3}
    assert fitting(space, {"student.learning_rate": 0.01}) is None
