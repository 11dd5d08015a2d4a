"""Optuna's samplers as this project sets them, and what is said about one that cannot do its work."""

from __future__ import annotations

import warnings

import optuna
import pytest

from src.tuning.samplers import PRUNERS, SAMPLERS, make_sampler, sampler_note, sampling_problems
from src.tuning.search_space import CategoricalParameter, FloatParameter, IntParameter, SearchSpace
from src.tuning.settings import TuningSettings

RATE = FloatParameter(type="float", low=0.001, high=0.01, log=True)
LOSS = CategoricalParameter(type="categorical", choices=["ce", "bce"])
WIDTH = IntParameter(type="int", low=8, high=64)
CMAES = TuningSettings(sampler="cmaes")


def space(**parameters: FloatParameter | IntParameter | CategoricalParameter) -> SearchSpace:
    return SearchSpace("student", {"ndcg_20": "maximize"}, parameters)


def test_tpe_is_set_as_it_was_measured_whatever_optuna_defaults_to() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler = make_sampler(TuningSettings(), seed=1, number=0)
    assert isinstance(sampler, optuna.samplers.TPESampler)
    chosen = {name: getattr(sampler, f"_{name}") for name in ("n_startup_trials", "multivariate", "group")}
    assert chosen == {"n_startup_trials": 5, "multivariate": True, "group": False}
    assert sampler._constant_liar is True


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"loss": LOSS}, "cannot propose anything here, all is drawn at random: loss (categories); it needs at least"),
        ({"rate": RATE}, "all is drawn at random: rate (the only number); it needs at least 2 numbers"),
        ({"rate": RATE, "loss": LOSS}, "all is drawn at random: rate (the only number), loss (categories); it needs"),
        ({"rate": RATE, "width": WIDTH, "loss": LOSS}, "cannot propose, and draws at random: loss (categories); "),
        (
            {"rate": RATE, "width": WIDTH, "n": WIDTH.model_copy(update={"when": {"width": 8}})},
            "draws at random: n (not in every trial); ",
        ),
        (
            {"rate": RATE, "width": WIDTH, "n": IntParameter(type="int", low=3, high=3)},
            "draws at random: n (a single value); ",
        ),
    ],
)
def test_cma_es_says_what_it_cannot_propose(parameters: dict, said: str) -> None:
    note = sampler_note(CMAES, space(**parameters))
    assert said in note
    assert "tuning.sampler=tpe" in note
    for sampler in ("tpe", "random", "grid"):
        assert sampler_note(TuningSettings(sampler=sampler), space(**parameters)) == ""


def nothing(settings: TuningSettings, number: int) -> None:
    """Stands for a factory that makes nothing."""


@pytest.mark.parametrize("field", ["sampler", "pruner"])
@pytest.mark.parametrize(
    ("name", "said"),
    [("best", "cannot be found"), ("nowhere:factory", "cannot be found"), (f"{__name__}:nothing", "makes a NoneType")],
)
def test_one_that_cannot_be_made_is_one_problem_before_training(field: str, name: str, said: str) -> None:
    tuning = TuningSettings(**{field: name})  # type: ignore[arg-type]
    (problem,) = sampling_problems(tuning, space(rate=RATE, width=WIDTH), "space.yaml")
    assert problem.field == f"tuning.{field}"
    assert said in problem.rule
    assert sampler_note(tuning, space(rate=RATE, width=WIDTH)) == ""


def test_several_objectives_are_for_samplers_that_know_them_and_no_pruner() -> None:
    both = SearchSpace("student", {"ndcg_20": "maximize", "parameters": "minimize"}, {"rate": RATE, "width": WIDTH})
    found = {
        (sampler, pruner): [problem.field for problem in sampling_problems(chosen, both, "space.yaml")]
        for sampler in SAMPLERS
        for pruner in PRUNERS
        for chosen in [TuningSettings(sampler=sampler, pruner=pruner)]
    }
    assert {key for key, fields in found.items() if "tuning.sampler" in fields} == {("cmaes", name) for name in PRUNERS}
    assert {key for key, fields in found.items() if "tuning.pruner" in fields} == {
        (sampler, pruner) for sampler in SAMPLERS for pruner in PRUNERS if pruner != "none"
    }


def test_cma_es_over_numbers_has_nothing_to_say() -> None:
    assert sampler_note(CMAES, space(rate=RATE, width=WIDTH)) == ""
