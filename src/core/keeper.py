"""When a training is saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from src.core.checkpoints import Checkpoint
from src.core.finite import FiniteWatch
from src.core.fit_state import FitState, Progress


@dataclass
class Keeper:
    """Saves a fit to its checkpoint, and measures what it has taken, saving aside.

    ``interval``: seconds after which a running epoch is saved; 0: never before it has been evaluated. What ``watch``
    finds ends the training before the state is saved: every training that goes on from such a state would fail again.
    """

    checkpoint: Checkpoint
    state: FitState
    progress: Progress
    interval: float
    clock: Callable[[], float]
    watch: FiniteWatch

    def begin(self) -> None:
        """An epoch begins, or goes on."""
        self._begun = self._saved = self._counted = self.clock()
        self._kept = self.progress.epoch_steps

    def step_done(self) -> None:
        """Save when the last time is long ago."""
        self.watch.step_done()
        if self.interval > 0 and self.clock() - self._saved >= self.interval:
            self.save()

    def trained(self) -> None:
        """Save before the evaluation, in which much can happen; not after an epoch that is quickly made again."""
        self.watch.look_at_all()
        unsaved = self.progress.epoch_steps > self._kept
        if unsaved and self.interval > 0 and self.clock() - self._begun >= self.interval:
            self.save()

    def save(self) -> None:
        """Save all there is.

        Raises:
            TrainingFailed: it is not finite, and the state that was saved before is still there.
        """
        self.watch.look_at_all()
        self.progress.seconds += self.clock() - self._counted
        self.checkpoint.save(self.state.save(self.progress))
        self._saved = self._counted = self.clock()
        self._kept = self.progress.epoch_steps
