"""Learning curves of trainings that are over: those that a run found finished, and those that it may have watched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from src.pipeline.tracking import Tracker, by_epoch


def write_curves(tracker: Tracker, name: str, history: Sequence[Mapping[str, float]]) -> None:
    """Draw a training that is over; points that were drawn while it ran stay as they are.

    Args:
        tracker: keeps the curves.
        name: of the training's run.
        history: the metrics of each epoch, the first epoch's first.
    """
    run = tracker.run(name)
    for epoch, metrics in enumerate(history, start=1):
        run.log("epoch", epoch, by_epoch(metrics))
    run.close()
