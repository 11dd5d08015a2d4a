"""When a training is saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from src.core.checkpoints import Checkpoint
from src.core.finite import FiniteCheck
from src.core.fit_state import FitState, Progress

#: a state of at most so many bytes is written in a fraction of a second: after every epoch
SMALL = 16 * 2**20


@dataclass
class CheckpointWriter:
    """Saves a fit to its checkpoint, and measures what it has taken, saving aside.

    ``interval``: seconds after which a running epoch is saved; 0: never before it has been evaluated. What ``watch``
    finds ends the training before the state is saved: every training that goes on from such a state would fail again.
    A large state (a table of items, its moments, its mean) is not written after each of many short epochs: what is
    lost with a killed training is at most ``interval``, and training it again gives the same numbers.
    """

    checkpoint: Checkpoint
    state: FitState
    progress: Progress
    interval: float
    clock: Callable[[], float]
    finite_check: FiniteCheck
    _owed: bool = False

    def begin(self) -> None:
        """An epoch begins, or goes on."""
        self._begun = self._counted = self.clock()
        if not self._owed:
            self._saved = self._begun
        self._kept = self.progress.epoch_steps

    def step_done(self) -> None:
        """Save when the last time is long ago."""
        self.finite_check.step_done()
        if self.interval > 0 and self.clock() - self._saved >= self.interval:
            self.save()

    def trained(self) -> None:
        """Save before the evaluation, in which much can happen; not after an epoch that is quickly made again."""
        self.finite_check.check_all()
        unsaved = self.progress.epoch_steps > self._kept
        if unsaved and self.interval > 0 and self.clock() - self._begun >= self.interval:
            self.save()

    def evaluated(self) -> None:
        """An epoch is over; raises as `save`."""
        due = self.interval == 0 or self.clock() - self._saved >= self.interval
        if due or self.state.size(self.progress) <= SMALL:
            self.save()
        else:
            self._owed = True
            self._count()

    def save(self) -> None:
        """Save all there is.

        Raises:
            TrainingFailed: it is not finite, and the state that was saved before is still there.
        """
        self.finite_check.check_all()
        self._count()
        self.checkpoint.save(self.state.save(self.progress))
        self._saved = self._counted = self.clock()
        self._kept, self._owed = self.progress.epoch_steps, False

    def _count(self) -> None:
        now = self.clock()
        self.progress.seconds += now - self._counted
        self._counted = now
