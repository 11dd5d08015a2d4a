"""Search-space documents: what is accepted, what is refused and how it is said."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from src.core.errors import ConfigError
from src.tuning.search_space import flatten
from src.tuning.space_document import load_search_space

CONFIG = {
    "distill": {"lam": 0.5, "alpha": 0.1},
    "active": {"policy": "all", "kl_threshold": 0.1, "rank_threshold": 20},
}
METRICS = ("ndcg_10", "ndcg_20")


def _write(tmp_path: Path, parameters: str, metric: str = "ndcg_20") -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(
        f"stage: distill\nmetric: {metric}\ndirection: maximize\nparameters:\n{parameters}", encoding="utf-8"
    )
    return path


def _problems(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_search_space(path, CONFIG, METRICS)
    return str(caught.value)


def test_a_conditional_parameter_is_drawn_only_under_its_condition(tmp_path: Path) -> None:
    space = load_search_space(
        _write(
            tmp_path,
            "  active.policy: {type: categorical, choices: [all, kl_divergence]}\n"
            "  active.kl_threshold: {type: float, low: 0.5, high: 0.5, when: {active.policy: kl_divergence}}\n",
        ),
        CONFIG,
        METRICS,
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [space.suggest(study.ask()) for _ in range(20)]
    assert {values["active.policy"] for values in drawn} == {"all", "kl_divergence"}
    for values in drawn:
        assert ("active.kl_threshold" in values) == (values["active.policy"] == "kl_divergence")


def test_a_number_with_an_exponent_is_a_number(tmp_path: Path) -> None:
    path = _write(tmp_path, "  distill.lam: {type: float, low: 1e-4, high: 1.0e2, log: true}\n")
    parameter = load_search_space(path, CONFIG, METRICS).parameters["distill.lam"]
    assert (parameter.low, parameter.high) == (0.0001, 100.0)  # type: ignore[union-attr]


def test_bounds_are_inclusive(tmp_path: Path) -> None:
    policy = "  active.policy: {type: categorical, choices: [ground_truth_error]}\n"
    path = _write(tmp_path, policy + "  active.rank_threshold: {type: int, low: 3, high: 4}\n")
    space = load_search_space(path, CONFIG, METRICS)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    assert {space.suggest(study.ask())["active.rank_threshold"] for _ in range(30)} == {3, 4}


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ("  distill.lamb: {type: float, low: 0, high: 1}\n", "did you mean distill.lam?"),
        ("  distill.lam: {type: float, low: 2, high: 1}\n", "low must not exceed high"),
        ("  distill.lam: {type: float, low: 0, high: 1, log: true}\n", "low must be above 0"),
        ("  distill.lam: {type: float, low: '0', high: 1}\n", "valid number"),
        ("  distill.lam: {type: flot, low: 0, high: 1}\n", "flot"),
        ("  distill.lam: {type: float, low: 0, hihg: 1}\n", "hihg"),
        ("  active.policy: {type: categorical, choices: [all, all]}\n", "names a choice twice"),
        (
            "  distill.lam: {type: float, low: 0, high: 1}\n  distill.lam: {type: float, low: 0, high: 2}\n",
            "is used twice",
        ),
        (
            "  active.kl_threshold: {type: float, low: 0, high: 1, when: {active.policy: all}}\n",
            "must name a parameter that stands above",
        ),
        (
            "  active.policy: {type: categorical, choices: [all]}\n"
            "  active.kl_threshold: {type: float, low: 0, high: 1, when: {active.policy: kl_divergence}}\n",
            "can never hold",
        ),
    ],
)
def test_what_is_refused_and_what_is_said(tmp_path: Path, parameters: str, said: str) -> None:
    assert said in _problems(_write(tmp_path, parameters))


def test_several_problems_are_reported_together(tmp_path: Path) -> None:
    said = _problems(
        _write(
            tmp_path,
            "  distill.lamb: {type: float, low: 0, high: 1}\n  distill.alpha: {type: float, low: 3, high: 1}\n",
            metric="ndcg_7",
        )
    )
    assert "distill.lamb" in said
    assert "low must not exceed high" in said
    assert "ndcg_7" in said


def test_a_missing_document_is_named(tmp_path: Path) -> None:
    assert "nowhere.yaml" in _problems(tmp_path / "nowhere.yaml")


def test_flatten_gives_dotted_keys() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}
