"""Which searched keys a trial would read. A parameter that nothing reads makes every trial of it the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

#: what takes a key's place in a stage, or decides it there
_INSTEAD = {
    "distill": {"student.dro_weight": "distill.alpha", "student.dro_beta": "distill.beta"},
    "student": {},
    "teacher": {},
}


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


_RANKING = (_above_zero("distill.lam"),)
_TEACHING = (*_RANKING, _above_zero("distill.embedding_loss_weight"))
_TITLES, _ITEMS = (_is("teacher.objective", "title_lm"),), (_is("teacher.objective", "item_ce"),)
#: a key, or a group of keys, is read where each of these lists holds a switch that is on
_READ_WHERE: Mapping[str, Sequence[Sequence[_Switch]]] = {
    "student.heads": [(_is("student.architecture", "sasrec"),)],
    "student.num_filters": [(_is("student.architecture", "caser"),)],
    "student.filter_sizes": [(_is("student.architecture", "caser"),)],
    "student.negatives": [(_is("student.loss", "bce"),)],
    "student.shared_negatives": [(_is("student.loss", "sampled", "gbce", "auto"),)],
    "student.negatives_power": [(_is("student.loss", "sampled", "gbce", "auto"),)],
    "student.gbce_calibration": [(_is("student.loss", "gbce"),)],
    "student.dro_beta": [(_above_zero("student.dro_weight"),)],
    "distill.beta": [(_above_zero("distill.alpha"),)],
    "distill.dro_weighting": [(_above_zero("distill.alpha"),), _RANKING],
    "distill.candidate_topk": [_TEACHING],
    "distill.temperature": [_TEACHING],
    "distill.gamma_position": [_RANKING],
    "distill.gamma_confidence": [_RANKING],
    "distill.gamma_consistency": [_RANKING],
    "distill.ranking_loss_weight": [_RANKING],
    "distill.ranking_negative": [_RANKING],
    "distill.embedding_loss": [(_above_zero("distill.embedding_loss_weight"),)],
    "active.policy": [_TEACHING],
    "active.kl_threshold": [(_policy("kl_divergence"),), _TEACHING],
    "active.rank_threshold": [(_policy("ground_truth_error"),), _TEACHING],
    "teacher.gate.dropout": [(_is("teacher.gate.kind", "linear"),)],
    "teacher.gate.top_k": [(_is("teacher.gate.kind", "linear"),)],
    "teacher.gate.noise": [(_is("teacher.gate.kind", "linear", "mlp"),)],
    "teacher.gate.hidden": [(_is("teacher.gate.kind", "mlp"),)],
    "teacher.title": [_TITLES],
    "teacher.head": [_ITEMS],
    "teacher.head.fit_rows": [(_is("teacher.head.init", "recommender", "title"),)],
    "teacher.head.ridge": [(_is("teacher.head.init", "recommender"),)],
    "teacher.head.sharpness": [(_is("teacher.head.init", "title"),)],
    "teacher.train.head_learning_rate": [_ITEMS],
}


def unread(stage: str, key: str, possible: Callable[[str], Sequence[object]]) -> tuple[str, str] | None:
    """Why no trial of a stage would read a key, and what to do about it; None for a key that is read.

    Args:
        stage: the stage whose trials are trained.
        key: the dotted key of a searched parameter.
        possible: the values that another key can take where this one is searched; none for a key that there is not.
    """
    if key.endswith(".threads"):
        return "a trial computes with as many threads as it occupies cores", "set tuning.cpu_per_trial instead"
    if key.endswith(".checkpoint_minutes"):
        return "decides nothing of what a trial learns", "leave it out"
    if other := _INSTEAD[stage].get(key):
        return f"is not read in stage {stage}", f"search {other} instead"
    for group, lists in _READ_WHERE.items():
        for switches in lists if key == group or key.startswith(f"{group}.") else ():
            if not any(_may_be_on(switch, possible(switch.key)) for switch in switches):
                where = ", or where ".join(switch.words for switch in switches)
                return f"is read only where {where}", "leave it out, or let the space or the configuration hold that"
    return None


def _may_be_on(switch: _Switch, values: Sequence[object]) -> bool:
    return not values or any(switch.on(value) for value in values)
