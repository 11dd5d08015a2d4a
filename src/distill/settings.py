"""How knowledge is distilled, and which labelled rows are taught."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

import src.distill.terms as own
from src.core.settings import STRICT
from src.distill.terms.base import Term
from src.student.settings import NetworkSettings


@cache
def terms() -> tuple[Term, ...]:
    """Every term of the distillation, in the order of the sum: a file of `src/distill/terms/` holds one, ``TERM``."""
    modules = (importlib.import_module(f"{own.__name__}.{m.name}") for m in pkgutil.iter_modules(own.__path__))
    return tuple(sorted((m.TERM for m in modules if hasattr(m, "TERM")), key=lambda term: (term.order, term.name)))


@dataclass(frozen=True, config=STRICT)
class _Common:
    """What all terms share."""

    ce_loss_weight: Annotated[float, Field(ge=0, description="weight of the main loss (CE or BCE: student.loss)")] = 1.0
    teachers: Annotated[
        tuple[str, ...],
        Field(
            min_length=1,
            description="whose labels are distilled, their mean where there are several: llm (a language model, or "
            "outputs_from), titles (its embeddings of titles alone: nothing is trained), self (two seeds "
            "of the student), or a model in closed form (linear, ...)",
        ),
    ] = ("llm",)
    outputs_from: Annotated[
        Path | None,
        Field(description="folder of finished teacher outputs or of DLLM2Rec's three files; null: train a teacher"),
    ] = None


if TYPE_CHECKING:

    class DistillSettings(_Common):
        """The keys of every term are its fields."""

        def __init__(self, **values: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

else:

    def _post_init(self) -> None:
        for term in terms():
            getattr(term.Settings, "__post_init__", lambda _: None)(self)

    DistillSettings = dataclass(frozen=True, config=STRICT)(
        type(
            "DistillSettings",
            (*(term.Settings for term in terms()), _Common),
            {"__module__": __name__, "__doc__": "main loss + the terms that are on.", "__post_init__": _post_init},
        )
    )


def active_terms(settings: DistillSettings) -> tuple[Term, ...]:
    """The terms that these settings switch on, in the order of the sum."""
    return tuple(term for term in terms() if term.is_on(settings))


def taught_student(student: NetworkSettings, settings: DistillSettings) -> NetworkSettings:
    """The settings of the student that the active terms teach."""
    for term in active_terms(settings):
        student = term.student(student)
    return student


def priors_beside(student: NetworkSettings, possible: Iterable[Term]) -> tuple[str, ...]:
    """The priors that some terms put in place of the student's own."""
    priors = (term.student(student).prior for term in possible)
    return tuple(dict.fromkeys(prior for prior in priors if prior != student.prior))


@dataclass(frozen=True, config=STRICT)
class ActiveSettings:
    """Which labelled rows are taught in a step."""

    policy: Annotated[
        str,
        Field(
            pattern=r"^(all|kl_divergence|ground_truth_error|[\w.]+:\w+)$",
            description="all labelled rows; kl_divergence: where teacher and student disagree; ground_truth_error: "
            "where the student errs; package.module:factory: a policy of your own",
        ),
    ] = "all"
    kl_threshold: Annotated[
        float, Field(ge=0, description="kl_divergence: least KL(teacher || student) in nats that is taught")
    ] = 0.1
    rank_threshold: Annotated[
        int, Field(ge=0, description="ground_truth_error: rows whose target ranks worse than this are taught")
    ] = 20
