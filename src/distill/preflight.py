"""What can be known to be wrong with a distillation before anything is trained: one function."""

from __future__ import annotations

from collections.abc import Callable

from src.core.errors import ConfigError, Problem, gather
from src.data.teacher_outputs import TeacherOutputs
from src.distill.selection_policy import build_policy, require_policy_fits
from src.distill.settings import ActiveSettings, DistillSettings, active_terms
from src.distill.teachers import LLM, SELF, TITLES
from src.student.models import closed_forms, require_network
from src.student.objectives import resolve_loss
from src.student.settings import StudentSettings


def check_distill_settings(
    settings: DistillSettings,
    active: ActiveSettings,
    student: StudentSettings,
    num_items: Callable[[], int],
    given: Callable[[], TeacherOutputs] | None = None,
) -> None:
    """Look at the student, the terms, the teachers, the selection policy, and labels that are given.

    Args:
        settings: of the terms, and whose labels are distilled.
        active: which labelled rows are taught.
        student: who is taught.
        num_items: gives V; what it raises is one of the problems.
        given: gives the labels that ``distill.outputs_from`` names; likewise. None where a teacher makes them.

    Raises:
        ConfigError: with every problem.
    """
    gather(
        lambda: build_policy(active),
        lambda: check_teachers(settings),
        lambda: _check_student(settings, active, student, num_items),
        lambda: _check_given(settings, given()) if given is not None else None,
    )


def _check_student(
    settings: DistillSettings, active: ActiveSettings, student: StudentSettings, num_items: Callable[[], int]
) -> None:
    network = require_network(student)
    if problems := [problem for term in active_terms(settings) for problem in term.problems(settings, network)]:
        raise ConfigError(problems)
    require_policy_fits(resolve_loss(network, num_items()), settings, active)


def check_teachers(settings: DistillSettings) -> None:
    """Raises ``ConfigError`` with teachers that there are not, and with terms that read what these teachers lack."""
    known = [LLM, TITLES, SELF, *closed_forms()]
    problems = [
        Problem("distill.teachers", name, "is no teacher", f"use {', '.join(known)}")
        for name in settings.teachers
        if name not in known
    ]
    if not {LLM, TITLES} & set(settings.teachers):
        rule = "these teachers have no item embeddings: only a language model has"
        step = "set it to 0, or name llm among distill.teachers"
        problems += [
            Problem(f"distill.{key}", value, rule, step)
            for term in active_terms(settings)
            if term.needs_embeddings
            for key in term.switches
            if (value := getattr(settings, key)) != 0
        ]
    if problems:
        raise ConfigError(problems)


def _check_given(settings: DistillSettings, outputs: TeacherOutputs) -> None:
    """Labels of another run, or another program, may be shorter than this run wants them."""
    listed = outputs.candidates.shape[1]
    if settings.candidate_topk > listed and any(term.reads_labels for term in active_terms(settings)):
        rule = f"the labels in {settings.outputs_from} list {listed} candidates a row"
        raise ConfigError.one("distill.candidate_topk", settings.candidate_topk, rule, "lower it, or label again")
