"""The arms of the fair protocol follow from the terms and the search space; nothing else names them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
from pydantic.dataclasses import dataclass

import src.tuning.arms as arms_module
import src.tuning.trial_values as trial_values
from src.config.reading import read_settings
from src.core.errors import ConfigError
from src.core.settings import STRICT
from src.distill.settings import DistillSettings, active_terms, terms
from src.distill.terms.base import Term
from src.pipeline.settings import ExperimentSettings
from src.student.models import require_network, student_settings
from src.tuning.arms import STUDENT, Arm, arms_of, check_arms, fixed_values, space_of, teachers_of
from src.tuning.search_settings import TuneSettings, experiment
from src.tuning.search_space import FloatParameter, SearchSpace
from src.tuning.trial_values import apply_values, no_distillation


@pytest.fixture(scope="module")
def settings() -> ExperimentSettings:
    """The shipped configuration with every term off."""
    found = experiment(read_settings("tune", [], TuneSettings)[0])
    student = require_network(found.student)
    off = {key: value for term in terms() for key, value in term.off(student).items() if key in term.switches}
    return replace(found, distill=replace(found.distill, **off))


def space_with(*keys: str, metric: str = "ndcg_20") -> SearchSpace:
    """These keys between 0 and 1."""
    form = FloatParameter(type="float", low=0.0, high=1.0)
    return SearchSpace("distill", {metric: "maximize"}, dict.fromkeys(keys, form))


def arms_for(settings: ExperimentSettings, *keys: str) -> dict[str, Arm]:
    return {arm.name: arm for arm in arms_of(space_with("student.dropout", *keys), settings)}


def test_each_switch_that_is_searched_brings_its_arm(settings: ExperimentSettings) -> None:
    found = arms_for(settings, "distill.lam", "distill.ed_weight", "distill.text_weight")
    assert {name: arm.terms for name, arm in found.items()} == {
        "student": (),
        "ranking": ("ranking",),
        "embedding": ("item_input",),
        "text": ("item_text",),
        "everything": ("ranking", "item_input", "item_text"),
        "labels_of_self": ("ranking",),
        "labels_of_linear": ("ranking",),
    }
    assert {name: arm.teachers for name, arm in found.items() if arm.teachers != ("llm",)} == {
        "labels_of_self": ("self",),
        "labels_of_linear": ("linear",),
    }
    assert {name for name, arm in found.items() if arm.uses_llm} == {"ranking", "embedding", "text", "everything"}
    assert teachers_of(list(found.values())) == [("llm",), ("self",), ("linear",)]


@pytest.mark.parametrize("term", terms(), ids=lambda term: term.name)
def test_every_term_has_an_arm(settings: ExperimentSettings, term: Term) -> None:
    for key in term.switches:
        found = arms_for(settings, f"distill.{key}")
        assert found[term.arm].terms == (term.name,)
        assert found[term.arm].title == term.title
        assert "everything" not in found  # one arm alone is everything
        controls = {name for name in found if name.startswith("labels_of_")}
        assert bool(controls) == (term.reads_labels and not term.needs_embeddings)
        assert found[term.arm].uses_llm == (term.uses_teacher or term.needs_texts)


def test_a_prior_drawn_to_texts_needs_a_language_model_whoever_teaches(settings: ExperimentSettings) -> None:
    taught = replace(settings, distill=replace(settings.distill, teachers=("self",)))
    found = arms_for(taught, "distill.soft_weight", "distill.text_prior")
    assert {name for name, arm in found.items() if arm.uses_llm} == {"text_prior", "everything"}
    assert fixed_values(found["soft"], taught)["distill.text_prior"] is False
    assert "distill.text_prior" not in fixed_values(found["text_prior"], taught)


def test_terms_of_one_arm_share_it(settings: ExperimentSettings) -> None:
    found = arms_for(settings, "distill.ed_weight", "distill.embedding_loss_weight")
    assert found["embedding"].terms == ("item_input", "output_projection")
    assert set(found) == {"student", "embedding"}


def test_what_the_configuration_switches_on_counts_without_being_searched(settings: ExperimentSettings) -> None:
    on = replace(settings, distill=replace(settings.distill, lam=0.5))
    assert set(arms_for(on)) == {"student", "ranking", "labels_of_self", "labels_of_linear"}


def test_teachers_of_the_configuration_teach_every_arm_but_the_controls(settings: ExperimentSettings) -> None:
    chosen = replace(settings, distill=replace(settings.distill, teachers=("linear",)))
    found = arms_for(chosen, "distill.lam")
    assert found["ranking"].teachers == ("linear",)
    assert not found["ranking"].uses_llm
    # labels of the linear model are what the arm itself has
    assert set(found) == {"student", "ranking", "labels_of_self"}
    assert teachers_of(list(found.values())) == [("linear",), ("self",)]


def test_an_arm_searches_what_all_share_and_its_own(settings: ExperimentSettings) -> None:
    keys = (
        "student.dropout", "distill.ce_loss_weight", "distill.lam", "distill.temperature", "distill.gamma_position",
        "distill.soft_weight", "distill.soft_temperature", "distill.ed_weight", "distill.alpha", "distill.beta",
        "active.kl_threshold",
    )  # fmt: skip
    space = space_with(*keys)
    found = {arm.name: set(space_of(arm, space).parameters) for arm in arms_of(space, settings)}
    shared = {"student.dropout", "distill.ce_loss_weight"}
    labels = {"distill.temperature", "active.kl_threshold"}
    assert found["student"] == {"student.dropout"}  # with nothing beside it, the main loss's weight is a step size
    assert found["dro"] == shared | {"distill.alpha", "distill.beta"}
    assert found["ranking"] == shared | labels | {"distill.lam", "distill.gamma_position"}
    assert found["soft"] == shared | labels | {"distill.soft_weight", "distill.soft_temperature"}
    assert found["embedding"] == shared | {"distill.ed_weight"}
    assert found["everything"] == set(keys)
    assert found["labels_of_self"] == found["ranking"] | found["soft"]


def test_the_reference_arm_is_the_baseline_whatever_the_configuration_has_on(settings: ExperimentSettings) -> None:
    student = student_settings("transformer", dro_weight=0.3, dro_beta=2.0)
    distill = replace(settings.distill, lam=0.5, ed_weight=0.2, alpha=0.7, beta=5.0, ce_loss_weight=0.4)
    chosen = replace(settings, student=student, distill=distill)
    values = fixed_values(STUDENT, chosen)
    assert values["distill.alpha"] == 0.3
    assert values["distill.beta"] == 2.0
    assert values["distill.ce_loss_weight"] == 1.0
    alone = apply_values(chosen, values).distill
    assert [term.name for term in active_terms(alone)] == ["dro"]


@pytest.mark.parametrize("key", ["distill.lam", "distill.soft_weight", "distill.text_weight", "distill.alpha"])
def test_an_arm_keeps_its_own_terms_and_switches_the_others_off(settings: ExperimentSettings, key: str) -> None:
    flags = {key for key, value in no_distillation(settings).items() if value is False}
    switches = [switch for term in terms() for switch in term.switches]
    everything: dict[str, Any] = {name: True if f"distill.{name}" in flags else 0.5 for name in switches}
    on = replace(settings, distill=replace(settings.distill, ce_loss_weight=0.4, **everything))
    (owner,) = [term for term in terms() if key.removeprefix("distill.") in term.switches]
    arm = Arm("one", "one", (owner.name,), ("self",))
    values = fixed_values(arm, on)
    assert key not in values
    assert "distill.ce_loss_weight" not in values
    assert values["distill.teachers"] == ["self"]
    left = apply_values(on, values).distill
    assert active_terms(left) == (owner,)
    assert left.teachers == ("self",)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (space_with("distill.lam"), "needs student.* parameters"),
        (space_with("student.dropout"), "switches no term of the distillation on"),
        (space_with("student.dropout", "distill.lam", metric="recall_20"), "compares NDCG@K, and nothing else"),
        (space_with("distill.ce_loss_weight", "distill.lam"), "needs student.* parameters"),
    ],
)
def test_a_space_that_answers_nothing_is_refused(settings: ExperimentSettings, space: SearchSpace, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("*", r"\*")):
        check_arms(space, settings)


def test_the_shipped_space_has_its_arms(settings: ExperimentSettings) -> None:
    check_arms(space_with("student.dropout", "distill.lam"), settings)


@dataclass(frozen=True, config=STRICT)
class _Settings:
    planted_weight: float = 0.0
    planted_depth: int = 3


class _Planted(Term):
    """A term that somebody has just written."""

    name, arm, title = "planted", "planted", "student + planted"
    Settings, switches, order = _Settings, ("planted_weight",), 70
    reads_labels: ClassVar[bool] = True


def test_a_new_term_has_its_arm_its_part_of_the_space_and_its_neutral_value(
    settings: ExperimentSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry alone knows it. Its settings' keys follow as well: `tests/docs/test_extend.py` plants a file."""
    planted = (*terms(), _Planted())
    for module in (arms_module, trial_values):
        monkeypatch.setattr(module, "terms", lambda: planted)
    values = {field: getattr(settings.distill, field) for field in DistillSettings.__dataclass_fields__}  # type: ignore[attr-defined]
    known = type("Known", (), {**values, "planted_weight": 0.0, "planted_depth": 3})()
    with_it = type("Chosen", (), {"distill": known, "student": settings.student})()
    space = space_with("student.dropout", "distill.lam", "distill.planted_weight", "distill.planted_depth")
    found = {arm.name: arm for arm in arms_of(space, with_it)}
    assert found["planted"].terms == ("planted",)
    assert found["everything"].terms == ("ranking", "planted")
    assert set(space_of(found["planted"], space).parameters) == {
        "student.dropout", "distill.planted_weight", "distill.planted_depth",
    }  # fmt: skip
    assert fixed_values(found["ranking"], with_it)["distill.planted_weight"] == 0.0
    assert trial_values.no_distillation(with_it)["distill.planted_weight"] == 0.0
