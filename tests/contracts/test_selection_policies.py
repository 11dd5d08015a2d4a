"""Our policies keep the contract; and the contract can be broken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from src.distill.selection_policy import GroundTruthError, KLDivergence, SelectionContext, SelectionPolicy, TeachAll
from tests.contracts.selection_policy import SelectionPolicyContract, any_context


class TestTeachAll(SelectionPolicyContract):
    """`all`."""

    def make(self) -> SelectionPolicy:
        """The policy."""
        return TeachAll()


class TestKLDivergence(SelectionPolicyContract):
    """`kl_divergence`."""

    def make(self) -> SelectionPolicy:
        """A threshold that some rows reach."""
        return KLDivergence(1.0)


class TestGroundTruthError(SelectionPolicyContract):
    """`ground_truth_error`."""

    def make(self) -> SelectionPolicy:
        """A threshold that some rows exceed."""
        return GroundTruthError(7)


@pytest.mark.parametrize("policy", [KLDivergence(1.0), GroundTruthError(7)])
def test_the_contracts_context_separates_rows(policy: SelectionPolicy) -> None:
    """Otherwise the suite would say nothing about these policies."""
    context = any_context()
    chosen = policy.select(context)
    assert 0 < int(chosen.sum()) < int(context.labelled.sum())


class _Top:
    """The half of the batch with the largest logits: a row's answer depends on the others."""

    def select(self, context: SelectionContext) -> Tensor:
        best = context.student_logits.amax(dim=1)
        return best > best.median()


class _Restless:
    """Another answer each time."""

    calls = 0

    def select(self, context: SelectionContext) -> Tensor:
        self.calls += 1
        return context.labelled & (context.target > self.calls)


class _Careless:
    """Changes what it was given."""

    def select(self, context: SelectionContext) -> Tensor:
        context.student_logits.zero_()
        return context.labelled


class _Soft:
    """A weight instead of a decision."""

    def select(self, context: SelectionContext) -> Tensor:
        return context.student_logits.amax(dim=1).sigmoid()


class _Branching:
    """A Python branch on a value."""

    def select(self, context: SelectionContext) -> Tensor:
        return context.labelled if bool(context.student_logits[0, 0] > 0) else ~context.labelled


@pytest.mark.parametrize(
    ("policy", "broken"),
    [
        (_Top, "test_a_rows_answer_depends_on_that_row_alone"),
        (_Restless, "test_the_same_question_has_the_same_answer"),
        (_Careless, "test_its_inputs_are_left_as_they_are"),
        (_Soft, "test_one_boolean_a_row"),
        (_Soft, "test_it_sends_no_gradient"),
        (_Branching, "test_it_maps_over_a_population_of_students"),
    ],
)
def test_the_contract_finds_a_policy_that_breaks_it(policy: type[SelectionPolicy], broken: str) -> None:
    suite = SelectionPolicyContract()
    suite.make = policy  # type: ignore[method-assign, assignment]
    with pytest.raises((AssertionError, RuntimeError)):
        getattr(suite, broken)()
    assert torch.is_grad_enabled()
