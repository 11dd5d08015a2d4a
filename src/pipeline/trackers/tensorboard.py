"""TensorBoard's event files: a folder a run, and one HParams table over all of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import HParam, Metric, hparams_config_pb, hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from src.pipeline.tracking import Axis, Outcome, numbers

#: what a table consists of is in files of its own, so that it can be written anew
_TABLE = ".table"
#: numbers this process's files, many of which may be begun in one second
_files = count()
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
        with closing(_table_file(place)) as file:
            file.add(hparams_config_pb(columns, shown))
        for outcome in outcomes:
            values = {
                key: value if isinstance(value, (bool, float, str)) else float(value)
                for key, value in {**outcome.parameters, **{key: outcome.results.get(key, "") for key in texts}}.items()
            }
            with closing(_table_file(self.folder / outcome.name)) as file:
                file.add(hparams_pb(values, trial_id=outcome.name.replace("/", " ")))
                for key, value in numbers(outcome.results).items():
                    file.add(_scalar(key, value), outcome.step)


class EventRun:
    """Curves in a folder; what earlier files hold is not written again, and without a point there is no file."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._last = folder, last_steps(folder)
        self._file: EventFile | None = None
        self._clock, self._flushed = clock, clock()

    def log(self, axis: Axis, at: int, values: Mapping[str, float]) -> None:
        """As `Run.log`."""
        ahead = {name: value for name, value in values.items() if at > self._last.get(name, -1)}
        if not ahead:
            return
        file = self._file = self._file or EventFile(self._folder)
        for name, value in ahead.items():
            file.add(_scalar(name, value), at)
            self._last[name] = at
        if axis == "epoch" or self._clock() - self._flushed >= _FLUSH:
            file.flush()
            self._flushed = self._clock()

    def close(self) -> None:
        """As `Run.close`."""
        if self._file is not None:
            self._file.close()


def last_steps(folder: Path) -> dict[str, int]:
    """The last step of each curve that a folder's event files hold; a record that was torn by a kill is no point."""
    if not any(folder.glob("events.out.*")):
        return {}
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: max(point.step for point in events.Scalars(name)) for name in events.Tags()["scalars"]}


class EventFile:
    """A new event file. It is written where it stands: torch's writer has a thread a file, which tells a full disk
    with a traceback."""

    def __init__(self, folder: Path, suffix: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads a run's files in the order of their names
        name = f"events.out.tfevents.{int(time.time()):010d}.{next(_files):06d}.{os.getpid()}{suffix}"
        self._records = RecordWriter((folder / name).open("wb"))
        self._write(Event(file_version="brain.Event:2"))

    def add(self, summary: Any, step: int = 0) -> None:
        """A summary message."""
        self._write(Event(summary=summary, step=step))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """What was written can be read."""
        self._records.flush()

    def close(self) -> None:
        """It is complete."""
        self._records.close()


def _scalar(name: str, value: float) -> Any:
    return Summary(value=[Summary.Value(tag=name, simple_value=value)])


def _table_file(folder: Path) -> EventFile:
    """The file of a table's part, in place of an earlier one."""
    for old in folder.glob(f"events.out.*{_TABLE}"):
        old.unlink()
    return EventFile(folder, _TABLE)
