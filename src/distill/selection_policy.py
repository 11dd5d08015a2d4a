"""Which labelled rows are taught in a step. The interface is open: ``active.policy=package.module:factory`` names one
of your own, where ``factory(settings: ActiveSettings)`` returns a `SelectionPolicy`.

A policy is a pure function of tensors; ``tests/contracts/selection_policy.py`` is the suite that any policy must pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from src.core.errors import ConfigError
from src.core.metrics import target_ranks
from src.core.plugins import build_plugin
from src.distill.settings import ActiveSettings, DistillSettings, active_terms
from src.student.objectives import SAMPLED
from src.student.settings import NetworkSettings


@dataclass(frozen=True, eq=False)
class SelectionContext:
    """What a policy may look at, without gradients.

    ``student_logits`` ``[B, V]``, of the columns that a step looks at where the loss is one over sampled items (see
    `require_policy_fits`); ``target`` ``[B]`` and ``candidates`` ``[B, K]`` are columns of it; ``distances``
    ``[B, K]``; ``labelled`` ``[B]`` bool (the candidates of unlabelled rows are arbitrary valid ids); ``temperature``
    τ > 0.
    """

    student_logits: Tensor
    target: Tensor
    candidates: Tensor
    distances: Tensor
    labelled: Tensor
    temperature: float


class SelectionPolicy(Protocol):
    """Chooses rows; the trainer intersects the choice with ``labelled``."""

    def select(self, context: SelectionContext) -> Tensor:
        """``[B]`` bool: rows to teach. Each row's answer depends on that row alone."""


class TeachAll:
    """Every labelled row."""

    def select(self, context: SelectionContext) -> Tensor:
        """Select ``[B]`` bool: every labelled row."""
        return context.labelled


def teacher_student_kl(logits: Tensor, candidates: Tensor, distances: Tensor, temperature: float) -> Tensor:
    """KL(teacher ‖ student) over the teacher's top K, in nats.

    Args:
        logits: ``[B, V]`` of the student, whose distribution is a softmax over the K candidates.
        candidates: ``[B, K]``.
        distances: d ``[B, K]``; the teacher's distribution is ∝ e^{−d/τ}.
        temperature: τ.

    Returns:
        ``[B]``.
    """
    teacher = torch.log_softmax(-distances / temperature, dim=1)
    student = torch.log_softmax(logits.gather(1, candidates), dim=1)
    return (teacher.exp() * (teacher - student)).sum(dim=1)


@dataclass(frozen=True)
class KLDivergence:
    """Rows in which teacher and student disagree by at least ``threshold`` nats."""

    threshold: float

    def select(self, context: SelectionContext) -> Tensor:
        """Select ``[B]`` bool: labelled rows whose divergence reaches the threshold."""
        kl = teacher_student_kl(context.student_logits, context.candidates, context.distances, context.temperature)
        return context.labelled & (kl >= self.threshold)


@dataclass(frozen=True)
class GroundTruthError:
    """Rows whose target the student ranks worse than ``threshold`` (1-based)."""

    threshold: int

    def select(self, context: SelectionContext) -> Tensor:
        """Select ``[B]`` bool: labelled rows whose target ranks behind the threshold."""
        return context.labelled & (target_ranks(context.student_logits, context.target) > self.threshold)


_POLICIES: dict[str, Callable[[ActiveSettings], SelectionPolicy]] = {
    "all": lambda settings: TeachAll(),
    "kl_divergence": lambda settings: KLDivergence(settings.kl_threshold),
    "ground_truth_error": lambda settings: GroundTruthError(settings.rank_threshold),
}

#: those that look at the target and the teacher's candidates at most
_NEEDS_NO_RANKING = ("all", "kl_divergence")


def build_policy(settings: ActiveSettings) -> SelectionPolicy:
    """The policy that the settings name; raises ``ConfigError`` for one that does not exist or cannot be imported."""
    return build_plugin("active.policy", settings.policy, _POLICIES, settings)


def require_policy_fits(student: NetworkSettings, distill: DistillSettings, active: ActiveSettings) -> None:
    """Refuse a policy that looks at the whole ranking where a loss over sampled items has none.

    Args:
        student: its loss.
        distill: which terms are on.
        active: which policy.

    Raises:
        ConfigError: the two do not go together.
    """
    if student.loss not in SAMPLED or active.policy in _NEEDS_NO_RANKING:
        return
    if any(term.reads_labels for term in active_terms(distill)):
        rule = f"looks at the student's whole ranking, which student.loss={student.loss} does not compute"
        step = f"use active.policy={' or '.join(_NEEDS_NO_RANKING)}, or student.loss=ce"
        raise ConfigError.one("active.policy", active.policy, rule, step)
