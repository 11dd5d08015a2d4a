"""MLflow: an experiment a result folder. Where no tracking server is set, it is kept in the folder's `mlruns`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from src.core.errors import first_line
from src.core.logging import get_logger
from src.pipeline.tracking import Axis, LastPoints, Outcome, numbers

_log = get_logger(__name__)

# its import gives it a handler of its own, and it tells of every table that it creates
logging.getLogger("mlflow").setLevel(logging.ERROR)

#: what MLflow takes at once
_PARAMS, _LONGEST = 100, 500


@dataclass
class MLflow:
    """Runs of one experiment, found again by their names."""

    folder: Path
    _client: Any = field(init=False)
    _last: LastPoints = field(init=False)

    def __post_init__(self) -> None:
        own = f"sqlite:///{self.folder / 'mlflow.db'}" if _has_database() else (self.folder / "mlruns").as_uri()
        self._client = mlflow.MlflowClient(mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else own)
        self._last = LastPoints(self.folder / "tracking" / "mlflow.json")

    def run(self, name: str) -> MLflowRun:
        """As `Tracker.run`; raises ``OSError`` where the server does not answer."""
        try:
            return MLflowRun(self._client, self._id(name), name, self._last)
        except MlflowException as error:
            raise OSError(f"MLflow: {first_line(error)}") from error

    @cached_property
    def _experiment(self) -> str:
        name = self.folder.name
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self._client.create_experiment(name))

    def _id(self, name: str) -> str:
        asked = f"tags.`mlflow.runName` = '{name}'"
        found = self._client.search_runs([self._experiment], asked, max_results=1)
        run = found[0] if found else self._client.create_run(self._experiment, run_name=name)
        return str(run.info.run_id)

    def table(self, name: str, parameters: Sequence[str], outcomes: Sequence[Outcome]) -> None:
        """As `Tracker.table`: parameters, results and states of the runs."""
        with _never_in_the_way():
            for outcome in outcomes:
                self._line(outcome)

    def _line(self, outcome: Outcome) -> None:
        run, now = self._id(outcome.name), int(1000 * time.time())
        values = numbers(outcome.results)
        texts = {key: value for key, value in outcome.results.items() if isinstance(value, str)}
        fresh = self._last.ahead(outcome.name, outcome.step, {f"results/{key}": v for key, v in values.items()})
        params = [Param(key, str(value)[:_LONGEST]) for key, value in outcome.parameters.items()]
        metrics = [Metric(key, value, now, outcome.step) for key, value in fresh.items()]
        tags = [RunTag(key, value) for key, value in texts.items()]
        self._client.log_batch(run, metrics, params[:_PARAMS], tags)


def _has_database() -> bool:
    """Whether the whole of MLflow is there, whose newer versions keep no runs in plain files."""
    from importlib.util import find_spec

    return find_spec("sqlalchemy") is not None


@contextmanager
def _never_in_the_way() -> Iterator[None]:
    """A server that does not answer loses points; no training ends for it."""
    try:
        yield
    except MlflowException as error:
        _log.warning("points are lost to MLflow: %s", first_line(error))


@dataclass(frozen=True)
class MLflowRun:
    """One run of MLflow."""

    client: Any
    id: str
    name: str
    last: LastPoints

    def log(self, axis: Axis, at: int, values: Mapping[str, float]) -> None:
        """As `Run.log`."""
        now, ahead = int(1000 * time.time()), self.last.ahead(self.name, at, values)
        if ahead:
            with _never_in_the_way():
                self.client.log_batch(self.id, [Metric(key, value, now, at) for key, value in ahead.items()])

    def close(self) -> None:
        """The run has ended; one that goes on ends again."""
        with _never_in_the_way():
            self.client.set_terminated(self.id)
