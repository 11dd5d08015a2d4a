"""DRO of the target over the whole catalogue (golden §1c); the ranking term adds that of its candidates."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from src.core.settings import STRICT
from src.distill.terms.base import Step, Term
from src.student.losses import dro_at
from src.student.settings import NetworkSettings


@dataclass(frozen=True, config=STRICT)
class DroSettings:
    """Distributionally robust optimisation."""

    alpha: Annotated[float, Field(ge=0, description="weight of DRO, of the target's and of each candidate's")] = 0.1
    beta: Annotated[float, Field(gt=0, description="beta, the temperature inside DRO")] = 1.0


class Dro(Term):
    """``alpha`` · DRO."""

    name, arm, title = "dro", "dro", "student + DRO"
    Settings, switches, order = DroSettings, ("alpha",), 10

    @property
    def uses_teacher(self) -> bool:
        """It needs nothing but counts."""
        return False

    def off(self, student: NetworkSettings) -> dict[str, float]:
        """The student alone may have DRO, too."""
        return {"alpha": student.dro_weight, "beta": student.dro_beta}

    def loss(self, step: Step) -> Tensor:
        """The mean over the batch."""
        alpha: float = step.settings.alpha
        return alpha * dro_at(step.dro, step.target.unsqueeze(1)).mean()


TERM = Dro()
