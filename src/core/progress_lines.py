"""A long training in a log: without a terminal, a line now and then says where it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from src.core.logging import get_logger
from src.core.timing import duration
from src.core.watching import TrainingStatus

_log = get_logger(__name__)

#: seconds between two lines at least
LINE_SECONDS = 30.0


@dataclass
class ProgressLines:
    """Watches one training; the first line comes when it has run so long.

    Args:
        name: what the run calls it.
        say: gets each line.
        clock: counts seconds.
    """

    name: str
    say: Callable[[str], None] = _log.info
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._said = self.clock()
        self._loss: float | None = None

    def update(self, status: TrainingStatus) -> None:
        """Say a line where the last one was said long enough ago."""
        self._loss = status.values.get("loss", self._loss)
        now = self.clock()
        if now - self._said < LINE_SECONDS:
            return
        self._said = now
        loss = "" if self._loss is None else f", loss {self._loss:.4g}"
        left = "" if status.left is None else f", about {duration(status.left)} left"
        self.say(f"{self.name}: step {status.step:,} of {status.steps:,}{loss}{left}")

    def epoch(self, epoch: int, status: TrainingStatus, metrics: Mapping[str, float]) -> None:
        """As `update`."""
        self.update(status)

    def close(self) -> None:
        """There is nothing to close."""
