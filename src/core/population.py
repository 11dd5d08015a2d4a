"""Fits of one shape that train together: what a step computes is computed for all of them at once.

A member is an ordinary `Fitting`, and everything between two steps is its own: order of rows, evaluation, best epoch,
early stopping, checkpoint. Its weights, moments and mean weights are rows of the population's matrices, in which one
batched pass moves them all. What differs between members in numbers (weights of a loss, rates of dropout, learning
rates) becomes a vector; dropout and negatives are drawn from each member's own streams. So a member's losses are those
of the same fit alone but for rounding, and a fit may be begun in one population and end in another, or alone.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from src.core.differences import NotBatchable
from src.core.logging import get_logger
from src.core.stacked_members import StackedMembers
from src.core.training import AloneStep, FitResult, Fitting

_log = get_logger(__name__)


@dataclass(eq=False)
class Member:
    """A fit among others: ``rows`` are the ones that it wants to train on next, None when its training is over."""

    fit: Fitting
    rows: Tensor | None = field(default=None, init=False)
    result: FitResult | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.stream = self.fit.draw_apart()
        self._run: Generator[Tensor, Tensor, FitResult] = self.fit.steps()

    def advance(self, loss: Tensor | None = None) -> None:
        """Go on to the next step; ``loss`` is that of the step before. Raises as `Fitting.steps`."""
        try:
            self.rows = next(self._run) if loss is None else self._run.send(loss)
        except StopIteration as end:
            self.rows, self.result = None, end.value

    @property
    def within_epoch(self) -> bool:
        """Whether it stands between two steps of an epoch, not between epochs."""
        return self.fit.progress.epoch_steps > 0

    def step_alone(self) -> Tensor:
        """Train on `rows` as `fit` does; returns the loss."""
        assert self.rows is not None
        with self.drawing():
            return AloneStep(self.fit)(self.rows)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Torch's own stream is this member's, for the block."""
        with torch.random.fork_rng(devices=[self.fit.device] if self.fit.device.type == "cuda" else []):
            if self.fit.device.type == "cuda":
                torch.cuda.set_rng_state(self.stream.get_state(), self.fit.device)
            else:
                torch.set_rng_state(self.stream.get_state())
            yield
            on_gpu = self.fit.device.type == "cuda"
            self.stream.set_state(torch.cuda.get_rng_state(self.fit.device) if on_gpu else torch.get_rng_state())


class Population:
    """Trains members epoch by epoch. Where they cannot be computed as one they are trained in turns, which is told."""

    def __init__(self) -> None:
        #: why members train in turns; empty where they train as one
        self.in_turns = ""
        self._stack: StackedMembers | None = None
        self._verified = False

    def epoch(self, members: Sequence[Member]) -> None:
        """Train members to the end of an epoch, or of their training. Raises what `Member.advance` raises."""
        for member in members:
            # one that was interrupted within an epoch: its steps are not the others'
            while member.rows is not None and member.within_epoch:
                member.advance(member.step_alone())
        waiting = [member for member in members if member.rows is not None]
        while waiting:
            for member, loss in zip(waiting, self.step(waiting), strict=True):
                member.advance(loss)
            waiting = [member for member in waiting if member.rows is not None and member.within_epoch]

    def step(self, members: Sequence[Member]) -> Sequence[Tensor]:
        """One optimiser step of each member; returns their detached losses."""
        stack = self._stacked(members) if len(members) > 1 and not self.in_turns else None
        if stack is None:
            return [member.step_alone() for member in members]
        return stack.step(torch.stack([member.rows for member in members if member.rows is not None])).unbind()

    def _stacked(self, members: Sequence[Member]) -> StackedMembers | None:
        if self._stack is not None and self._stack.members == list(members):
            return self._stack
        try:
            self._stack = StackedMembers(members)
            if not self._verified:
                self._stack.verify()
                self._verified = True
        except NotBatchable as reason:
            self._stack, self.in_turns = None, str(reason)
            _log.warning("%d trainings run in turns, not as one: %s", len(members), reason)
        return self._stack
