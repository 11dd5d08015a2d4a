"""Which searched keys a trial would read. A parameter that nothing reads makes every trial of it the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from src.core.settings import NOT_DECIDING
from src.distill.settings import terms
from src.teacher.objective import objective_of, objectives

#: what takes a key's place in a stage, or decides it there
_INSTEAD = {
    "distill": {"student.dro_weight": "distill.alpha", "student.dro_beta": "distill.beta"},
    "student": {},
    "teacher": {},
}


#: the options of an own student mean what it says
_OWN = "student.options."
#: how a training runs: it decides how long that takes, and nothing of what is learned
_PACE = frozenset({"student.graphs", "teacher.compile", "teacher.gradient_checkpointing"})


@dataclass(frozen=True)
class _Switch:
    """A key that is read where another one has some value."""

    key: str
    words: str
    on: Callable[[object], bool]


def _is(key: str, *values: str) -> _Switch:
    return _Switch(key, f"{key} = {' or '.join(values)}", lambda value: value in values)


def _above_zero(key: str) -> _Switch:
    return _Switch(key, f"{key} is above 0", lambda value: isinstance(value, (int, float)) and value > 0)


def _policy(name: str) -> _Switch:
    # a policy of the user's own gets both thresholds
    words = f"active.policy = {name} or a policy of your own"
    return _Switch("active.policy", words, lambda value: value == name or ":" in str(value))


def _read_by_objective(path: str) -> _Switch:
    """The teacher's objectives that read a setting below ``teacher``; an objective of the user's own is asked, too."""
    names = [name for name, objective in objectives().items() if path in objective.own_settings]
    words = f"teacher.objective = {' or '.join(names)}"
    return _Switch("teacher.objective", words, lambda value: path in objective_of(str(value)).own_settings)


#: of the rooms whose switches stand in no class
_OTHERS: Mapping[str, Sequence[Sequence[_Switch]]] = {
    "student.negatives": [(_is("student.loss", "bce"),)],
    "student.shared_negatives": [(_is("student.loss", "sampled", "gbce", "auto"),)],
    "student.negatives_power": [(_is("student.loss", "sampled", "gbce", "auto"),)],
    "student.gbce_calibration": [(_is("student.loss", "gbce"),)],
    "student.dro_beta": [(_above_zero("student.dro_weight"),)],
    "student.text_rarity": [(_above_zero("student.text_weight"),)],
    "teacher.gate.dropout": [(_is("teacher.gate.kind", "linear"),)],
    "teacher.gate.top_k": [(_is("teacher.gate.kind", "linear"),)],
    "teacher.gate.noise": [(_is("teacher.gate.kind", "linear", "mlp"),)],
    "teacher.gate.hidden": [(_is("teacher.gate.kind", "mlp"),)],
    "teacher.head.fit_rows": [(_is("teacher.head.init", "recommender", "title"),)],
    "teacher.head.ridge": [(_is("teacher.head.init", "recommender"),)],
    "teacher.head.sharpness": [(_is("teacher.head.init", "title"),)],
}


@cache
def read_where() -> Mapping[str, Sequence[Sequence[_Switch]]]:
    """A key, or a group of keys, is read where each of these lists holds a switch that is on.

    What belongs to the distillation follows from its terms, what belongs to a teacher's objective from that; an
    architecture's keys are those of its settings, and no other's are keys of the configuration.
    """
    labels = tuple(_above_zero(f"distill.{key}") for term in terms() if term.reads_labels for key in term.switches)
    found: dict[str, Sequence[Sequence[_Switch]]] = {
        "active.policy": [labels],
        "active.kl_threshold": [(_policy("kl_divergence"),), labels],
        "active.rank_threshold": [(_policy("ground_truth_error"),), labels],
    }
    texts = tuple(
        _above_zero(f"distill.{key}")
        for term in terms()
        if term.needs_texts or term.scores_unseen
        for key in term.switches
    )
    found["student.unseen_negatives"] = [(*texts, _is("student.prior", "text_linear"))]
    for term in terms():
        switches = tuple(_above_zero(f"distill.{key}") for key in term.switches)
        for key in term.own_keys():
            if key in term.switches:
                continue
            more = [(_above_zero(f"distill.{term.also_needs[key]}"),)] if key in term.also_needs else []
            found[f"distill.{key}"] = [*more, labels if key in term.shared else switches]
    for path in {path for objective in objectives().values() for path in objective.own_settings}:
        found[f"teacher.{path}"] = [(_read_by_objective(path),)]
    return {**_OTHERS, **found}


def unread(
    stage: str, key: str, possible: Callable[[str], Sequence[object]], timed: bool = False
) -> tuple[str, str] | None:
    """Why no trial of a stage would read a key, and what to do about it; None for a key that is read.

    Args:
        stage: the stage whose trials are trained.
        key: the dotted key of a searched parameter.
        possible: the values that another key can take where this one is searched; none for a key that there is not.
        timed: whether the seconds of a training are an objective.
    """
    if key.startswith(_OWN):
        return None
    if key.endswith(".threads"):
        return "a trial computes with as many threads as it occupies cores", "set tuning.cpu_per_trial instead"
    if key in _PACE:
        step = "leave it out, or let seconds be an objective (also: {seconds: minimize})"
        return None if timed else ("decides nothing of what a trial learns", step)
    if key.rpartition(".")[2] in NOT_DECIDING:
        return "decides nothing of what a trial learns", "leave it out"
    if other := _INSTEAD[stage].get(key):
        return f"is not read in stage {stage}", f"search {other} instead"
    for group, lists in read_where().items():
        for switches in lists if key == group or key.startswith(f"{group}.") else ():
            if not any(_may_be_on(switch, possible(switch.key)) for switch in switches):
                where = ", or where ".join(switch.words for switch in switches)
                return f"is read only where {where}", "leave it out, or let the space or the configuration hold that"
    return None


def _may_be_on(switch: _Switch, values: Sequence[object]) -> bool:
    return not values or any(switch.on(value) for value in values)
