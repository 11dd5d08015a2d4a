"""The arms of the fair protocol: which terms of the distillation each one has, whose labels, and what it searches.

Arms follow from the terms (`src/distill/terms/`): each declares its own. Beside them stand the student alone, all terms
together, and two controls that need no language model: the same label terms with labels of the student itself (two
seeds of its own), and of the linear model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from src.core.errors import ConfigError
from src.distill.settings import terms
from src.distill.teachers import LLM, SELF, TITLES
from src.distill.terms.base import Term
from src.pipeline.settings import ExperimentSettings
from src.student.models import closed_forms, require_network, student_settings
from src.tuning.search_space import SearchSpace, Value
from src.tuning.trial_values import no_distillation


@dataclass(frozen=True)
class Arm:
    """A student with some of the terms, taught by some teachers. ``title`` is what a report calls it."""

    name: str
    title: str
    terms: tuple[str, ...]
    teachers: tuple[str, ...] = (LLM,)
    #: whether the student's prior is drawn towards texts that a language model reads
    text_prior: bool = False

    @property
    def own(self) -> tuple[Term, ...]:
        """The terms that are this arm's own."""
        return tuple(term for term in terms() if term.name in self.terms)

    @property
    def uses_llm(self) -> bool:
        """Whether a language model has a part in it."""
        reading = {LLM, TITLES, *(name for name in closed_forms() if student_settings(name).reads_text)}
        taught = bool(reading & set(self.teachers)) and any(term.uses_teacher for term in self.own)
        return taught or self.text_prior or any(term.needs_texts for term in self.own)


STUDENT = Arm("student", "student", ())
EVERYTHING = "everything"
#: whose labels the controls distil
CONTROLS = {SELF: "student + its own labels", "linear": "student + labels of the linear model"}


def arms_of(space: SearchSpace, settings: ExperimentSettings) -> tuple[Arm, ...]:
    """The arms that have something to search or to switch on in this space, the student alone first."""
    on = [term for term in terms() if _is_on(term, space, settings)]
    by_arm: dict[str, list[Term]] = {}
    for term in on:
        by_arm.setdefault(term.arm, []).append(term)
    teachers = tuple(settings.distill.teachers)
    arms = [replace(STUDENT, teachers=teachers)]
    arms += [Arm(name, own[0].title, tuple(term.name for term in own), teachers) for name, own in by_arm.items()]
    if len(by_arm) > 1:
        arms.append(Arm(EVERYTHING, EVERYTHING, tuple(term.name for term in on), teachers))
    labels = tuple(term.name for term in on if term.reads_labels and not term.needs_embeddings)
    if labels:
        controls = {name: title for name, title in CONTROLS.items() if teachers != (name,)}
        arms += [Arm(f"labels_of_{name}", title, labels, (name,)) for name, title in controls.items()]
    prior = require_network(settings.student).prior
    text_prior = prior not in ("none", "auto") and student_settings(prior).reads_text
    return tuple(replace(arm, text_prior=text_prior) for arm in arms)


def _is_on(term: Term, space: SearchSpace, settings: ExperimentSettings) -> bool:
    keys = [f"distill.{key}" for key in term.switches]
    return term.is_on(settings.distill) or any(key in space.parameters for key in keys)


def space_of(arm: Arm, space: SearchSpace) -> SearchSpace:
    """The part of a space that an arm searches: what all share, and its own terms."""
    return space.only(key for key in space.parameters if _belongs(key, arm))


def _belongs(key: str, arm: Arm) -> bool:
    room, _, name = key.partition(".")
    if room not in ("distill", "active"):
        return True
    owner = next((term for term in terms() if room == "distill" and name in term.own_keys()), None)
    if room == "active" or (owner is not None and name in owner.shared):
        return any(term.reads_labels for term in arm.own)
    # the main loss's weight says how it compares with other terms: alone it is the size of a step
    return bool(arm.terms) if owner is None else owner in arm.own


def fixed_values(arm: Arm, settings: ExperimentSettings) -> dict[str, Value]:
    """The keys that switch off what an arm does not have, and name its teachers; the student alone is the baseline."""
    off = no_distillation(settings)
    present = {f"distill.{key}" for term in arm.own for key in term.off(require_network(settings.student))}
    if arm.terms:
        present.add("distill.ce_loss_weight")
    return {
        **{key: value for key, value in off.items() if key not in present},
        "distill.teachers": list(arm.teachers),  # type: ignore[dict-item]  # a list is no searched value
    }


def check_arms(space: SearchSpace, settings: ExperimentSettings) -> None:
    """Raises ``ConfigError`` when no arm would differ from the student, or nothing is searched that all arms share."""
    if not space.metric.startswith("ndcg_") or len(space.objectives) > 1:
        rule = "protocol=fair compares NDCG@K, and nothing else"
        raise ConfigError.one("search space: metric", list(space.objectives), rule, "metric: ndcg_20")
    if not space_of(STUDENT, space).parameters:
        rule = "protocol=fair tunes the student alone as well, so the space needs student.* parameters"
        raise ConfigError.one("search space", list(space.parameters), rule, "see search_spaces/fair.yaml")
    if len(arms_of(space, settings)) == 1:
        rule = "switches no term of the distillation on: there is nothing to compare with the student"
        raise ConfigError.one("search space", list(space.parameters), rule, "add distill.lam, distill.ed_weight, ...")


def teachers_of(arms: Sequence[Arm]) -> list[tuple[str, ...]]:
    """Every set of teachers that some arm is taught by, once."""
    return list(dict.fromkeys(arm.teachers for arm in arms))
