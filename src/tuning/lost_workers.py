"""Workers that Ray itself ends: for its memory monitor, a lost node, a placement group that is gone.

Ray's Tune knows two ends of a worker: its function raised something, or its actor died. Any other exception of Ray's
ends Tune's loop, and the search with it (measured with Ray 2.60 and its memory monitor). Here it becomes a death.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.air.execution._internal import RayActorManager
from ray.exceptions import (
    ActorPlacementGroupRemoved,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    TaskPlacementGroupRemoved,
    WorkerCrashedError,
)
from ray.tune.execution import tune_controller

_ENDED_BY_RAY = (
    OutOfMemoryError, NodeDiedError, WorkerCrashedError, ActorPlacementGroupRemoved, TaskPlacementGroupRemoved,
)  # fmt: skip
_FULL = "this machine's memory was nearly used up, and Ray ended its worker: let fewer trials run at once"


class WorkerLost(RayActorError):
    """Ray ended a worker for a reason that lies outside of its trial."""

    def __init__(self, reason: str) -> None:
        super().__init__(None, reason, False, False)
        self.args = (reason,)  # what it is made from again where it was pickled
        self.reason = reason


def as_death(error: Exception) -> Exception:
    """An exception of Ray's that stands for the loss of a worker as a death of its actor; any other as it is."""
    if not isinstance(error, _ENDED_BY_RAY):
        return error
    if isinstance(error, OutOfMemoryError):
        return WorkerLost(_FULL)
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return WorkerLost(f"Ray lost its worker ({said})")


class WorkerManager(RayActorManager):
    """Tune's own manager of workers, which is told of each loss as of a death."""

    def _actor_start_failed(self, tracked_actor: Any, exception: Exception) -> None:
        super()._actor_start_failed(tracked_actor, as_death(exception))

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        super()._actor_task_failed(tracked_actor_task, as_death(exception))


@contextmanager
def losses_as_deaths() -> Iterator[None]:
    """Tune uses `WorkerManager` in this block: it offers no setting for it."""
    before = tune_controller.RayActorManager
    tune_controller.RayActorManager = WorkerManager
    try:
        yield
    finally:
        tune_controller.RayActorManager = before
