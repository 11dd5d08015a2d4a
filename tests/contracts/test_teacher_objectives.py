"""The project's own objectives, under the contract, by each way of ranking; and the contract can be broken."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from src.teacher.ilora_model import GatedTeacher
from src.teacher.interfaces import TrainingPlan
from src.teacher.item_head.objective import ItemCE
from src.teacher.settings import TeacherSettings
from tests.contracts.teacher_objective import TeacherObjectiveContract
from tests.teacher.title_builders import TITLE_SETTINGS


class TestItemCE(TeacherObjectiveContract):
    """`item_ce`."""

    def settings(self) -> TeacherSettings:
        """As they are by default."""
        return self.small()


class TestTitleLM(TeacherObjectiveContract):
    """`title_lm`, whose labels come from beams."""

    ranking = "constrained"

    def settings(self) -> TeacherSettings:
        """Candidates, answers and the metric of those."""
        export = replace(self.small().export, ranking=self.ranking)
        return replace(TITLE_SETTINGS, train_rows=0, validation_rows=0, export=export)


class TestGrounded(TestTitleLM):
    """`title_lm`, whose labels come from a free answer."""

    ranking = "grounded"


@dataclass
class _Spoiled:
    """A loss that is changed on its way."""

    kept: Any
    change: Any

    def loss(self, rows: Tensor) -> Tensor:
        return self.change(self.kept.loss(rows), rows)


class _Summed(ItemCE):
    """Its loss is a sum over rows: micro-batches would weigh differently."""

    def plan(self, *arguments: Any) -> TrainingPlan:
        plan = super().plan(*arguments)
        return replace(plan, objective=_Spoiled(plan.objective, lambda loss, rows: loss * len(rows)))


class _Deaf(ItemCE):
    """It learns nothing."""

    def plan(self, *arguments: Any) -> TrainingPlan:
        plan = super().plan(*arguments)
        head = arguments[0].head.weight
        return replace(plan, objective=_Spoiled(plan.objective, lambda loss, rows: loss.detach() + 0 * head.sum()))


class _Silent(ItemCE):
    """It evaluates something else than it says."""

    def plan(self, *arguments: Any) -> TrainingPlan:
        plan = super().plan(*arguments)
        found: Mapping[str, float] = {"loss": 1.0}
        return replace(plan, evaluate=lambda: found)


class _Careless(ItemCE):
    """Its dry run changes the teacher."""

    def dry_run(self, teacher: GatedTeacher, history: Tensor, length: Tensor, target: Tensor) -> Tensor:
        loss = super().dry_run(teacher, history, length, target)
        with torch.no_grad():
            teacher.projector.inner.bias.add_(1)
        return loss


class _Forgetful(ItemCE):
    """It does not count its head."""

    def small_parts(self, width: int, num_items: int) -> list[Any]:
        return []


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        (_Summed, "test_the_loss_of_a_batch_is_that_of_its_parts"),
        (_Deaf, "test_the_loss_reaches_every_trained_part"),
        (_Silent, "test_its_evaluation_gives_the_metrics_that_it_names"),
        (_Careless, "test_a_dry_run_leaves_everything_as_it_was"),
        (_Forgetful, "test_the_estimate_counts_what_is_trained"),
    ],
)
def test_the_contract_finds_an_objective_that_breaks_it(
    kind: type[ItemCE], broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("broken_objectives")
    setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "broken_objectives", module)
    suite = TeacherObjectiveContract()
    chosen = replace(suite.small(), objective=f"broken_objectives:{kind.__name__}")
    monkeypatch.setattr(suite, "settings", lambda: chosen)
    with pytest.raises(AssertionError):
        getattr(suite, broken)()
