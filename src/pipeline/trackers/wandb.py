"""Weights & Biases, offline: runs lie in the result folder's `wandb`; `wandb sync --sync-all` uploads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wandb

from src.core.data_utils import fingerprint
from src.pipeline.tracking import OF_TRAINING, Axis, LastPoints, Outcome

PROJECT = "anyo-ilora-dllm2rec"


@dataclass
class WandB:
    """Runs of one group, each with an id that its name gives it: one that goes on is the same run when it is synced."""

    folder: Path
    _last: LastPoints = field(init=False)

    def __post_init__(self) -> None:
        self._last = LastPoints(self.folder / "tracking" / "wandb.json")

    def _open(self, name: str, **more: Any) -> Any:
        return wandb.init(
            project=PROJECT,
            group=self.folder.name,
            name=name,
            id=fingerprint(str(self.folder), name)[:16],
            dir=str(self.folder),
            mode="offline",
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
            **more,
        )

    def run(self, name: str) -> WandBRun:
        """As `Tracker.run`."""
        return WandBRun(lambda: self._begin(name), name, self._last)

    def _begin(self, name: str) -> Any:
        run = self._open(name)
        run.define_metric("*", step_metric="epoch")
        run.define_metric("train/*", step_metric="step")
        for metric in OF_TRAINING.values():
            run.define_metric(metric, step_metric="epoch")
        return run

    def table(self, name: str, parameters: Sequence[str], outcomes: Sequence[Outcome]) -> None:
        """As `Tracker.table`: configuration and summary of the runs."""
        for outcome in outcomes:
            run = self._open(outcome.name, config=dict(outcome.parameters))
            run.summary.update({f"results/{key}": value for key, value in outcome.results.items()})
            run.finish()


@dataclass
class WandBRun:
    """One run. It begins with its first point: one that has no new ones would leave an empty run to be uploaded."""

    begin: Callable[[], Any]
    name: str
    last: LastPoints
    _handle: Any = None

    def log(self, axis: Axis, at: int, values: Mapping[str, float]) -> None:
        """As `Run.log`."""
        ahead = self.last.ahead(self.name, at, values)
        if ahead:
            self._handle = self._handle or self.begin()
            self._handle.log({**ahead, axis: at})

    def close(self) -> None:
        """As `Run.close`."""
        if self._handle is not None:
            self._handle.finish()
