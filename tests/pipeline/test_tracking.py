"""Trackers: what is drawn while models train, once and no more, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.core.errors import ConfigError
from src.core.watching import TrainingStatus, training
from src.pipeline import tracking as tracking_module
from src.pipeline.trackers.tensorboard import TensorBoard
from src.pipeline.tracking import (
    Curves,
    FailSafeRun,
    LastPoints,
    NoTracker,
    Outcome,
    check_tracking,
    followed,
    tracker_for,
)

OUTCOMES = [Outcome("trial_0000", {"lam": 0.5, "policy": "all"}, {"state": "complete", "best/ndcg": 0.25}, 2)]


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every point of every curve, those that stand there twice as well."""
    events = EventAccumulator(str(folder), purge_orphaned_data=False)
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(point.step, round(point.value, 4)) for point in events.Scalars(tag)] for tag in tags}


def test_curves_are_on_disk_while_the_training_runs(tmp_path: Path) -> None:
    curves = Curves(TensorBoard(tmp_path), "teacher")
    assert list(tmp_path.iterdir()) == []  # a training in closed form leaves no empty run
    curves.update(TrainingStatus(3, 9, {"loss": 2.5, "learning_rate": 0.125}))
    curves.epoch(1, TrainingStatus(4, 9, {"learning_rate": 0.0625}), {"ndcg_20": 0.5, "train_loss": 2.0})
    # nothing was closed
    assert points(tmp_path / "teacher") == {
        "train/loss": [(3, 2.5)],
        "train/learning_rate": [(3, 0.125), (4, 0.0625)],
        "validation/ndcg_20": [(1, 0.5)],
        "train/epoch_loss": [(1, 2.0)],
    }
    curves.close()


@pytest.mark.parametrize("torn", [0, 7])
def test_a_training_that_was_killed_and_goes_on_leaves_no_point_twice(tmp_path: Path, torn: int) -> None:
    first = TensorBoard(tmp_path).run("trial")
    for step in (1, 2, 3):
        first.log("step", step, {"train/loss": 1 / step})
    first.log("epoch", 1, {"ndcg": 0.5})
    first.close()
    if torn:  # the kill came while a record was written
        (file,) = (tmp_path / "trial").glob("events.*")
        file.write_bytes(file.read_bytes()[:-torn])
    second = TensorBoard(tmp_path).run("trial")
    second.log("epoch", 1, {"ndcg": 0.5})
    for step in (2, 3, 4):  # from the last checkpoint on
        second.log("step", step, {"train/loss": 1 / step})
    second.close()
    assert points(tmp_path / "trial") == {
        "train/loss": [(1, 1.0), (2, 0.5), (3, 0.3333), (4, 0.25)],
        "ndcg": [(1, 0.5)],
    }


def test_the_last_steps_are_kept_before_the_points_are_written(tmp_path: Path) -> None:
    last = LastPoints(tmp_path / "deep" / "last.json")
    assert last.ahead("run", 0, {"a": 1.0}) == {"a": 1.0}
    assert last.ahead("run", 2, {"a": 1.0, "b": 2.0}) == {"a": 1.0, "b": 2.0}
    again = LastPoints(tmp_path / "deep" / "last.json")
    assert again.ahead("run", 2, {"a": 1.0}) == {}
    assert again.ahead("run", 3, {"a": 1.0}) == {"a": 1.0}
    assert again.ahead("other", 1, {"a": 1.0}) == {"a": 1.0}
    assert json.loads((tmp_path / "deep" / "last.json").read_text()) == {"run": {"a": 3, "b": 2}, "other": {"a": 1}}


@pytest.mark.parametrize("content", [b"[1]", b'{"run": 3}', b"\xff", b"{"])
def test_damaged_last_steps_stop_no_training(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "last.json").write_bytes(content)
    last = LastPoints(tmp_path / "last.json")
    assert "last.json" in caplog.text
    assert last.ahead("run", 2, {"a": 1.0}) == {"a": 1.0}
    assert LastPoints(tmp_path / "last.json").ahead("run", 2, {"a": 1.0}) == {}


@pytest.mark.parametrize(("tracking", "package"), [("mlflow", "mlflow-skinny"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed_is_refused(
    monkeypatch: pytest.MonkeyPatch, tracking: Any, package: str
) -> None:
    monkeypatch.setattr(tracking_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"runtime.tracking = '{tracking}': needs {tracking}.*pip install {package}"):
        check_tracking(tracking)
    check_tracking("tensorboard")
    check_tracking("none")


def test_nobody_writes_nothing(tmp_path: Path) -> None:
    tracker = tracker_for("none", tmp_path)
    assert isinstance(tracker, NoTracker)
    run = tracker.run("a")
    run.log("step", 1, {"a": 1.0})
    run.close()
    tracker.table("", ["lam"], OUTCOMES)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_loses_curves_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full:
        def log(self, axis: str, at: int, values: object) -> None:
            raise OSError(28, "No space left on device")

        close = log

    run = FailSafeRun(Full())  # type: ignore[arg-type]
    for step in (1, 2):
        run.log("step", step, {"train/loss": 2.5})
    run.close()
    assert caplog.messages == ["curves are lost from here on: No space left on device"]
    (tmp_path / "file").touch()
    curves = Curves(TensorBoard(tmp_path / "file"), "teacher")  # no folder can be made there
    curves.update(TrainingStatus(1, 2, {"loss": 2.5}))
    curves.close()
    assert len(caplog.messages) == 2


def test_a_run_is_followed_by_curves_and_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from src.core import watching as watching_module

    monkeypatch.setattr(tracking_module, "is_terminal", lambda: False)
    with followed("tensorboard", tmp_path), training("encoder"):
        watcher = watching_module._watcher.get()
        assert watcher is not None
        watcher.update(TrainingStatus(1, 2, {"loss": 0.5}))
    assert points(tmp_path / "tb" / "encoder") == {"train/loss": [(1, 0.5)]}


# ------------------------------------------------------------------------------------------ the others, by small fakes


class FakeClient:
    """As `mlflow.MlflowClient`."""

    made: list[FakeClient] = []

    def __init__(self, uri: str) -> None:
        self.uri, self.runs, self.metrics, self.ended = uri, dict[str, str](), list[Any](), list[str]()
        self.params, self.tags = dict[str, str](), dict[str, str]()
        FakeClient.made.append(self)

    def get_experiment_by_name(self, name: str) -> None:
        """There is none."""

    def create_experiment(self, name: str) -> str:
        """Its id."""
        return f"experiment of {name}"

    def search_runs(self, experiments: list[str], asked: str, max_results: int) -> list[Any]:
        """By name."""
        name = asked.split("'")[1]
        return [SimpleNamespace(info=SimpleNamespace(run_id=self.runs[name]))] if name in self.runs else []

    def create_run(self, experiment: str, run_name: str) -> Any:
        """A new one."""
        self.runs[run_name] = f"id {len(self.runs)}"
        return SimpleNamespace(info=SimpleNamespace(run_id=self.runs[run_name]))

    def log_batch(self, run: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        """Kept."""
        self.metrics += [(run, metric.key, metric.step, metric.value) for metric in metrics]
        self.params |= {param.key: param.value for param in params}
        self.tags |= {tag.key: tag.value for tag in tags}

    def set_terminated(self, run: str) -> None:
        """Kept."""
        self.ended.append(run)


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def record(*names: str) -> Any:
        return lambda *values: SimpleNamespace(**dict(zip(names, values, strict=True)))

    mlflow, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    mlflow.MlflowClient = FakeClient  # type: ignore[attr-defined]
    mlflow.is_tracking_uri_set = lambda: False  # type: ignore[attr-defined]
    entities.Metric = record("key", "value", "timestamp", "step")  # type: ignore[attr-defined]
    entities.Param = entities.RunTag = record("key", "value")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    exceptions = ModuleType("mlflow.exceptions")
    exceptions.MlflowException = ConnectionError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", exceptions)
    monkeypatch.delitem(sys.modules, "src.pipeline.trackers.mlflow", raising=False)
    tracker = tracker_for("mlflow", tmp_path)
    client = FakeClient.made[-1]
    assert client.uri.startswith((f"file://{tmp_path}", f"sqlite:///{tmp_path}"))
    for _ in range(2):  # the second time as after a kill
        run = tracker.run("trial_0000")
        run.log("epoch", 1, {"ndcg": 0.5})
        run.close()
    tracker.table("", ["lam", "policy"], OUTCOMES)
    assert client.metrics == [("id 0", "ndcg", 1, 0.5), ("id 0", "results/best/ndcg", 2, 0.25)]
    assert client.ended == ["id 0", "id 0"]
    assert client.params == {"lam": "0.5", "policy": "all"}
    assert client.tags == {"state": "complete"}

    def away(*_: object) -> None:
        raise ConnectionError("no answer\nfrom anywhere")

    monkeypatch.setattr(client, "log_batch", away)
    tracker.run("trial_0000").log("epoch", 2, {"ndcg": 0.5})
    assert "points are lost to MLflow: no answer" in caplog.messages


def test_weights_and_biases_stay_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, logged, summary = list[dict[str, Any]](), list[dict[str, float]](), dict[str, Any]()
    handle = SimpleNamespace(
        log=logged.append, finish=lambda: None, define_metric=lambda *_, **__: None, summary=summary
    )
    wandb = ModuleType("wandb")

    def init(**arguments: Any) -> Any:
        begun.append(arguments)
        return handle

    wandb.init, wandb.Settings = init, SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delitem(sys.modules, "src.pipeline.trackers.wandb", raising=False)
    tracker = tracker_for("wandb", tmp_path)
    for _ in range(2):
        run = tracker.run("trial_0000")
        run.log("step", 3, {"train/loss": 2.5})
        run.close()
    # the second run had nothing to tell, and leaves no empty one to be uploaded
    assert len(begun) == 1
    tracker.table("", ["lam", "policy"], OUTCOMES)
    assert {arguments["mode"] for arguments in begun} == {"offline"}
    assert len({arguments["id"] for arguments in begun}) == 1
    assert logged == [{"train/loss": 2.5, "step": 3}]
    assert begun[-1]["config"] == {"lam": 0.5, "policy": "all"}
    assert summary == {"results/state": "complete", "results/best/ndcg": 0.25}
