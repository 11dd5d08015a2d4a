"""What every selection policy promises. A user's own policy runs the same suite::

from tests.contracts.selection_policy import SelectionPolicyContract

class TestMyPolicy(SelectionPolicyContract):
    def make(self) -> SelectionPolicy:
        return MyPolicy(threshold=0.5)
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from src.distill.selection_policy import SelectionContext, SelectionPolicy

B, V, K = 24, 15, 4


def any_context(seed: int = 0, rows: int = B) -> SelectionContext:
    """Random logits and rankings; about two rows of three are labelled."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(rows, V, generator=generator).argsort(dim=1)
    return SelectionContext(
        student_logits=torch.randn(rows, V, generator=generator) * 3,
        target=torch.randint(0, V, (rows,), generator=generator),
        candidates=order[:, :K],
        distances=torch.rand(rows, K, generator=generator).sort(dim=1).values * 5,
        labelled=torch.rand(rows, generator=generator) < 2 / 3,
        temperature=0.8,
    )


def at_rows(context: SelectionContext, rows: Tensor) -> SelectionContext:
    """The context of these rows only."""
    values = {field.name: getattr(context, field.name) for field in fields(context)}
    taken: dict[str, Any] = {name: value[rows] for name, value in values.items() if isinstance(value, Tensor)}
    return replace(context, **taken)


class SelectionPolicyContract:
    """Subclass in a test module, name it ``Test...``, and say in `make` which policy is meant."""

    def make(self) -> SelectionPolicy:
        """The policy under test, new."""
        raise NotImplementedError

    def select(self, context: SelectionContext) -> Tensor:
        """What a new policy chooses."""
        return self.make().select(context)

    def test_one_boolean_a_row(self) -> None:
        for rows in (B, 1):
            chosen = self.select(any_context(rows=rows))
            assert chosen.shape == (rows,)
            assert chosen.dtype == torch.bool

    def test_no_row_at_all_is_fine(self) -> None:
        assert self.select(at_rows(any_context(), torch.arange(0))).shape == (0,)

    def test_labels_decide_nothing_beyond_being_there(self) -> None:
        """The trainer intersects with ``labelled``: a labelled row's answer is the same whoever else is labelled."""
        context = any_context()
        everyone = replace(context, labelled=torch.ones_like(context.labelled))
        assert torch.equal(self.select(context) & context.labelled, self.select(everyone) & context.labelled)

    def test_a_rows_answer_depends_on_that_row_alone(self) -> None:
        context = any_context()
        together = self.select(context) & context.labelled
        alone = [self.select(at_rows(context, torch.tensor([row]))) for row in range(B)]
        assert torch.equal(torch.cat(alone) & context.labelled, together)
        order = torch.randperm(B, generator=torch.Generator().manual_seed(1))
        assert torch.equal(self.select(at_rows(context, order)) & context.labelled[order], together[order])

    def test_its_inputs_are_left_as_they_are(self) -> None:
        context, untouched = any_context(), any_context()
        self.select(context)
        for field in fields(context):
            before, after = getattr(untouched, field.name), getattr(context, field.name)
            assert torch.equal(before, after) if isinstance(before, Tensor) else before == after

    def test_the_same_question_has_the_same_answer(self) -> None:
        policy, context = self.make(), any_context()
        first = policy.select(context)
        policy.select(any_context(seed=1))
        assert torch.equal(policy.select(context), first)
        assert torch.equal(self.select(context), first)

    def test_it_sends_no_gradient(self) -> None:
        context = any_context()
        chosen = self.select(replace(context, student_logits=context.student_logits.clone().requires_grad_()))
        assert not chosen.requires_grad

    def test_what_stands_in_for_a_missing_label_changes_no_labelled_row(self) -> None:
        context = any_context()
        spoiled = replace(
            context,
            candidates=torch.where(context.labelled.unsqueeze(1), context.candidates, torch.arange(K)),
            distances=torch.where(context.labelled.unsqueeze(1), context.distances, 0.0),
        )
        assert torch.equal(self.select(spoiled) & context.labelled, self.select(context) & context.labelled)

    def test_it_maps_over_a_population_of_students(self) -> None:
        """No Python branch on a tensor's value: `torch.func.vmap` adds an axis of students."""
        context, policy = any_context(), self.make()
        population = torch.stack([context.student_logits, any_context(seed=2).student_logits])
        mapped = torch.func.vmap(lambda logits: policy.select(replace(context, student_logits=logits)))(population)
        alone = [policy.select(replace(context, student_logits=logits)) for logits in population]
        assert torch.equal(mapped.expand(2, B), torch.stack(alone))
