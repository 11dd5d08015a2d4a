"""TensorBoard's event files: a folder a run, and one HParams table over all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.summary_v2 import HParam, Metric, hparams_config_pb, hparams_pb
from torch.utils.tensorboard import SummaryWriter

from src.pipeline.tracking import Axis, Outcome, numbers

#: what a table consists of is in files of its own, so that it can be written anew
_TABLE = ".table"
#: seconds after which an epoch's points are brought to the disk; its end does that at once
_FLUSH = 3.0


@dataclass(frozen=True)
class TensorBoard:
    """Event files under a folder."""

    folder: Path

    def run(self, name: str) -> EventRun:
        """As `Tracker.run`."""
        return EventRun(self.folder / name)

    def table(self, name: str, parameters: Sequence[str], outcomes: Sequence[Outcome]) -> None:
        """As `Tracker.table`, in HParams. The columns are written once for all runs: taken from a single trial, as the
        usual callbacks do, they would lack the parameters that this trial did not have."""
        place = self.folder / name
        texts = dict.fromkeys(key for one in outcomes for key, value in one.results.items() if isinstance(value, str))
        metrics = dict.fromkeys(key for outcome in outcomes for key in numbers(outcome.results))
        columns = [HParam(key) for key in (*parameters, *texts)]
        shown = [Metric(key, display_name=key.replace("/", " ")) for key in metrics]
        with _table_writer(place) as writer:
            writer._get_file_writer().add_summary(_as_torch_summary(hparams_config_pb(columns, shown)))
        for outcome in outcomes:
            values = {
                key: value if isinstance(value, (bool, float, str)) else float(value)
                for key, value in {**outcome.parameters, **{key: outcome.results.get(key, "") for key in texts}}.items()
            }
            with _table_writer(self.folder / outcome.name) as writer:
                start = hparams_pb(values, trial_id=outcome.name.replace("/", " "))
                writer._get_file_writer().add_summary(_as_torch_summary(start))
                for key, value in numbers(outcome.results).items():
                    writer.add_scalar(key, value, outcome.step)


class EventRun:
    """Curves in a folder; what earlier files hold is not written again, and without a point there is no file."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._last = folder, last_steps(folder)
        self._writer: SummaryWriter | None = None
        self._clock, self._flushed = clock, clock()

    def log(self, axis: Axis, at: int, values: Mapping[str, float]) -> None:
        """As `Run.log`."""
        ahead = {name: value for name, value in values.items() if at > self._last.get(name, -1)}
        if not ahead:
            return
        writer = self._writer = self._writer or SummaryWriter(str(self._folder))
        for name, value in ahead.items():
            writer.add_scalar(name, value, at)
            self._last[name] = at
        if axis == "epoch" or self._clock() - self._flushed >= _FLUSH:
            writer.flush()
            self._flushed = self._clock()

    def close(self) -> None:
        """As `Run.close`."""
        if self._writer is not None:
            self._writer.close()


def last_steps(folder: Path) -> dict[str, int]:
    """The last step of each curve that a folder's event files hold; a record that was torn by a kill is no point."""
    if not any(folder.glob("events.out.*")):
        return {}
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: max(point.step for point in events.Scalars(name)) for name in events.Tags()["scalars"]}


def _table_writer(folder: Path) -> Any:
    """For a table's part, in place of an earlier one."""
    for old in folder.glob(f"events.out.*{_TABLE}"):
        old.unlink()
    return SummaryWriter(str(folder), filename_suffix=_TABLE)


def _as_torch_summary(summary: Any) -> Any:
    """TensorBoard's own summary message; torch's writer takes it as it is."""
    return summary
