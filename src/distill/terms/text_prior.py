"""A prior drawn towards texts: the linear model behind the student borrows from items with like texts.

The network is the same; the model to whose scores it adds its own is `text_linear` in place of `linear`. How strongly
that is drawn was chosen on validation when it was fitted. The language model has no part in what is served.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from src.core.errors import Problem
from src.core.settings import STRICT
from src.distill.terms.base import Term
from src.student.settings import NetworkSettings

if TYPE_CHECKING:
    from src.distill.settings import DistillSettings

#: the model in closed form that stands behind the student where this is on
TEXT_PRIOR = "text_linear"


@dataclass(frozen=True, config=STRICT)
class TextPriorSettings:
    """Which prior the student has while it is taught, and after."""

    text_prior: Annotated[
        bool, Field(description="the student's prior is the linear model drawn towards the items' texts (text_linear)")
    ] = False


class TextPrior(Term):
    """No part and no loss: another prior."""

    name, arm, title = "text_prior", "text_prior", "student + prior drawn towards texts"
    Settings, switches, order = TextPriorSettings, ("text_prior",), 5

    def is_on(self, settings: DistillSettings) -> bool:
        """Whether the other prior is asked for."""
        return bool(settings.text_prior)

    def off(self, student: NetworkSettings) -> dict[str, float]:
        """The student keeps its own prior."""
        return {"text_prior": False}

    def problems(self, settings: DistillSettings, student: NetworkSettings) -> list[Problem]:
        """There must be a prior in whose place it stands, and another one: else it would compare something else."""
        if student.prior not in ("none", TEXT_PRIOR):
            return []
        rule = "takes the place of the student's prior, which is " + (
            "none" if student.prior == "none" else f"{TEXT_PRIOR} already"
        )
        return [Problem("distill.text_prior", settings.text_prior, rule, "leave it out, or set student.prior=linear")]

    def student(self, student: NetworkSettings) -> NetworkSettings:
        """The same network behind another prior."""
        return replace(student, prior=TEXT_PRIOR)

    @property
    def needs_texts(self) -> bool:
        """The language model's embeddings of the items' texts, whoever teaches."""
        return True

    @property
    def needs_logits(self) -> bool:
        """No loss is added."""
        return False

    @property
    def uses_teacher(self) -> bool:
        """No label is read; whether a language model has a part in it, `needs_texts` says."""
        return False


TERM = TextPrior()
