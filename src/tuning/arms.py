"""The arms of the fair protocol: which terms of the distillation each one has, and what of the space it searches."""

from __future__ import annotations

from dataclasses import dataclass

from src.core.errors import ConfigError
from src.pipeline.settings import ExperimentSettings
from src.tuning.applied import no_distillation
from src.tuning.search_space import SearchSpace, Value


@dataclass(frozen=True)
class Arm:
    """A student with some of the terms. ``title`` is what a report calls it."""

    name: str
    title: str
    terms: tuple[str, ...]


STUDENT = Arm("student", "student", ())
ARMS = (
    STUDENT,
    Arm("dro", "student + DRO", ("dro",)),
    Arm("ranking", "student + ranking", ("ranking",)),
    Arm("embedding", "student + embedding", ("embedding",)),
    Arm("everything", "everything", ("dro", "ranking", "embedding")),
)

#: which term a key belongs to; keys of no term (the student's own) are shared by all arms
_TERM = {
    "distill.alpha": "dro",
    "distill.beta": "dro",
    "distill.dro_weighting": "dro",
    "distill.ed_weight": "embedding",
    "distill.embedding_loss_weight": "embedding",
    "distill.embedding_loss": "embedding",
}
#: the keys that switch a term on
_SWITCH = {
    "dro": ("distill.alpha",),
    "ranking": ("distill.lam",),
    "embedding": ("distill.ed_weight", "distill.embedding_loss_weight"),
}


def term_of(key: str) -> str | None:
    """The term that a key belongs to, None for what all arms share."""
    if key in _TERM:
        return _TERM[key]
    return None if key.startswith("student.") or key == "distill.ce_loss_weight" else "ranking"


def space_of(arm: Arm, space: SearchSpace) -> SearchSpace:
    """The part of a space that an arm searches: what all share, and its own terms."""
    return space.only(key for key in space.parameters if term_of(key) in (None, *arm.terms))


def fixed_values(arm: Arm, space: SearchSpace, settings: ExperimentSettings) -> dict[str, Value]:
    """The keys that switch off what an arm does not have.

    Raises ``ConfigError`` when nothing would switch one of its terms on.
    """
    neutral = no_distillation(settings)
    off: dict[str, Value] = {
        key: neutral[key] for term, keys in _SWITCH.items() if term not in arm.terms for key in keys
    }
    for term in arm.terms:
        on = any(key in space.parameters or _current(settings, key) > 0 for key in _SWITCH[term])
        if not on:
            keys = " or ".join(_SWITCH[term])
            rule = f"the arm {arm.title!r} needs it above 0, searched or configured"
            raise ConfigError.one(keys, 0.0, rule, "add it to the search space")
    return off


def check_arms(space: SearchSpace, settings: ExperimentSettings) -> None:
    """Raises ``ConfigError`` when no student is searched that the arms share, or one has nothing of its own."""
    for arm in ARMS:
        fixed_values(arm, space, settings)
    if not space.metric.startswith("ndcg_") or len(space.objectives) > 1:
        rule = "protocol=fair compares NDCG@K, and nothing else"
        raise ConfigError.one("search space: metric", list(space.objectives), rule, "metric: ndcg_20")
    if not space_of(STUDENT, space).parameters:
        rule = "protocol=fair tunes the student alone as well, so the space needs student.* parameters"
        raise ConfigError.one("search space", list(space.parameters), rule, "see search_spaces/fair.yaml")


def _current(settings: ExperimentSettings, key: str) -> float:
    return float(getattr(settings.distill, key.rsplit(".", 1)[-1]))
