"""The searcher and the scheduler as Ray drives them, without Ray."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.air.execution._internal import RayActorManager, TrackedActor
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RaySystemError,
    RayTaskError,
)
from ray.tune.error import TuneError
from ray.tune.execution import tune_controller
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from src.core.errors import AnyoError, Paused
from src.tuning import executor
from src.tuning.dispatch import RESTARTS, Dispatcher
from src.tuning.executor import (
    RunningSearch,
    StudyScheduler,
    StudySearcher,
    TuneCallback,
    _Halt,
    execute,
    running_search,
)
from src.tuning.lost_workers import WorkerLost, WorkerManager, as_death, losses_as_deaths
from src.tuning.resources import CONTEXT_BYTES, Resources
from src.tuning.trainable import MESSAGE, Trainable
from tests.tuning.test_dispatch import Drive


@dataclass
class FakeTrial:
    """What the scheduler reads of a Ray trial."""

    trial_id: str
    error_file: str | None = None
    pickled_error_file: str | None = None
    config: dict[str, Any] = field(default_factory=lambda: {"share": 0.25})

    @classmethod
    def ended_by(cls, trial_id: str, error: Exception, folder: Path) -> FakeTrial:
        """With the two files that Ray writes."""
        (folder / f"{trial_id}.pkl").write_bytes(ray.cloudpickle.dumps(error))
        (folder / f"{trial_id}.txt").write_text(f"Traceback\n{type(error).__name__}: {error}\n")
        return cls(trial_id, str(folder / f"{trial_id}.txt"), str(folder / f"{trial_id}.pkl"))


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drive:
    driver = Drive(tmp_path, trials=2)
    running = RunningSearch(
        driver.dispatcher, Resources(cpu=1.0, gpu=0.25), tmp_path, tmp_path, lambda: {"CPU": 2.0, "GPU": 1.0}
    )
    monkeypatch.setattr(executor, "_running", running)
    return driver


def result(**report: Any) -> dict[str, Any]:
    """A result as it comes from a worker."""
    return {MESSAGE: json.dumps(report), "training_iteration": 1}


def test_without_a_search_nothing_is_running() -> None:
    with pytest.raises(AnyoError, match="no search is running"):
        running_search()


def test_tune_is_not_told_that_it_is_through_while_other_searches_follow(tmp_path: Path, drive: Drive) -> None:
    """Its workers would end, and those of the next search begin anew: seconds each."""
    (tmp_path / "then").mkdir()
    second = Drive(tmp_path / "then", trials=1)
    running_search().dispatcher = Dispatcher(drive.searches, drive.store, 0, phases=[second.searches])
    searcher, scheduler = StudySearcher(), StudyScheduler()
    done = result(kind="done", values=[0.5], attributes={})
    for name in "abc":  # two trials, and the one that follows
        proposal = searcher.suggest(name)
        assert isinstance(proposal, dict)
        scheduler.on_trial_result(None, FakeTrial(name), done)  # type: ignore[arg-type]
        searcher.on_trial_complete(name, {"done": True})
    assert (drive.states(), second.states()) == (["COMPLETE"] * 2, ["COMPLETE"])
    assert searcher.suggest("d") == Searcher.FINISHED


def test_none_while_running_trials_may_come_back_and_finished_when_all_ended(drive: Drive) -> None:
    searcher, scheduler = StudySearcher(), StudyScheduler()
    proposals = [searcher.suggest(name) for name in "ab"]
    assert [p["number"] for p in proposals if isinstance(p, dict)] == [0, 1]
    assert searcher.suggest("c") is None
    for name in "ab":
        done = result(kind="done", values=[0.5], attributes={})
        assert scheduler.on_trial_result(None, FakeTrial(name), done) == TrialScheduler.CONTINUE  # type: ignore[arg-type]
        searcher.on_trial_complete(name, {"done": True})
    assert searcher.suggest("c") == Searcher.FINISHED


@pytest.mark.parametrize("total", [{"CPU": 1.9, "GPU": 1.0}, {"CPU": 2.0, "GPU": 0.4}, {"CPU": 2.0}])
def test_no_trial_is_drawn_before_it_can_start(drive: Drive, total: dict[str, float]) -> None:
    running_search().total = lambda: total
    searcher, scheduler = StudySearcher(), StudyScheduler()
    assert isinstance(searcher.suggest("a"), dict)
    assert searcher.suggest("b") is None
    assert drive.states() == ["RUNNING"]
    scheduler.on_trial_result(None, FakeTrial("a"), result(kind="done", values=[0.5], attributes={}))  # type: ignore[arg-type]
    assert isinstance(searcher.suggest("b"), dict)


def test_in_a_cluster_one_trial_waits_so_that_it_can_grow(drive: Drive) -> None:
    running_search().total = None
    assert [isinstance(StudySearcher().suggest(name), dict) for name in "ab"] == [True, True]


def test_a_retry_gets_twice_the_share(drive: Drive) -> None:
    searcher, scheduler = StudySearcher(), StudyScheduler()
    shares = []
    for name in "abc":
        proposal = searcher.suggest(name)
        assert isinstance(proposal, dict)
        shares.append((proposal["number"], proposal["share"]))
        scheduler.on_trial_result(None, FakeTrial(name), result(kind="memory", reason="out of memory"))  # type: ignore[arg-type]
        searcher.on_trial_complete(name, {})
    assert shares == [(0, 0.25), (0, 0.5), (0, 1.0)]


def test_who_had_the_whole_gpu_is_not_tried_again(drive: Drive) -> None:
    running_search().resources = Resources(cpu=1.0, gpu=0.6, free=10 * 2**30)
    searcher, scheduler = StudySearcher(), StudyScheduler()
    for name, share, memory in (("a", 0.6, 6 * 2**30 - CONTEXT_BYTES), ("b", 1.0, 0)):
        proposal = searcher.suggest(name)
        assert isinstance(proposal, dict)
        assert (proposal["number"], proposal["share"], proposal["memory"]) == (0, share, memory)
        scheduler.on_trial_result(None, FakeTrial(name, config=proposal), result(kind="memory", reason="no memory"))  # type: ignore[arg-type]
        searcher.on_trial_complete(name, {})
    assert (drive.states(), drive.failure(0)) == (["FAIL"], "no memory")


@pytest.mark.parametrize("death", [RayActorError(), ActorDiedError(), ActorUnavailableError("away", None)])
def test_a_dead_worker_is_not_a_defect(drive: Drive, tmp_path: Path, death: Exception) -> None:
    searcher, scheduler = StudySearcher(), StudyScheduler()
    searcher.suggest("a")
    scheduler.on_trial_error(None, FakeTrial.ended_by("a", death, tmp_path))  # type: ignore[arg-type]
    searcher.on_trial_complete("a", None, error=True)
    assert drive.states() == ["RUNNING"]
    searcher.suggest("b")
    scheduler.on_trial_error(None, FakeTrial.ended_by("b", ValueError("bad"), tmp_path))  # type: ignore[arg-type]
    searcher.on_trial_complete("b", None, error=True)
    assert (drive.states(), drive.failure(0)) == (["FAIL"], "ValueError: bad")


def test_a_worker_that_ray_ended_is_a_counted_death(drive: Drive, tmp_path: Path) -> None:
    searcher, scheduler = StudySearcher(), StudyScheduler()
    for name in ("a", "b"):
        searcher.suggest(name)
        scheduler.on_trial_error(None, FakeTrial.ended_by(name, as_death(OutOfMemoryError("low")), tmp_path))  # type: ignore[arg-type]
        searcher.on_trial_complete(name, None, error=True)
        assert drive.states() == ["RUNNING"]
    assert drive.record.trials()[0].user_attrs[RESTARTS] == 2


@pytest.mark.parametrize("error", [OutOfMemoryError("2 workers were killed"), NodeDiedError("the node is gone")])
def test_tunes_manager_takes_a_worker_that_ray_ended_for_a_dead_one(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RayActorManager, "_cleanup_actor", lambda *_, **__: None)  # there is no worker
    nothing: Any = None
    told: list[Exception] = []
    actor = TrackedActor(1, on_error=lambda _, exception: told.append(exception))
    task = TrackedActorTask(actor, on_error=lambda _, exception: told.append(exception))
    # why there is a manager of ours: this exception leaves Tune's loop
    with pytest.raises(RuntimeError, match="Caught unexpected exception"):
        RayActorManager(nothing)._actor_task_failed(task, error)
    WorkerManager(nothing)._actor_task_failed(task, error)
    WorkerManager(nothing)._actor_start_failed(actor, error)
    assert [type(exception) for exception in told] == [WorkerLost] * 3
    with losses_as_deaths():
        assert tune_controller.RayActorManager is WorkerManager
    assert tune_controller.RayActorManager is RayActorManager


def test_what_a_training_function_raised_stays_what_it_is() -> None:
    for error in (RayTaskError("train", "Traceback", ValueError("bad")), ActorDiedError(), RaySystemError("gone")):
        assert as_death(error) is error


def _from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = error.__context__ = cause
    return error


def _ended_by(error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search whose Tune ends by this, and then `execute` by whatever it makes of it."""

    class Broken:
        def fit(self) -> None:
            running_search().dispatcher.next()
            raise error

    driver = Drive(folder, trials=2)
    monkeypatch.setattr(executor, "_tuner", lambda *_: Broken())
    worker = Trainable.__new__(Trainable)
    worker.stall_minutes = 0.0
    execute(driver.dispatcher, worker, Resources(cpu=1.0, gpu=0.0), folder, folder, elastic=True)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            _from(RuntimeError("Caught unexpected exception: the store is gone\nmore"), RaySystemError("gone")),
            r"unexpected exception: the store is gone\)",
        ),
        (RaySystemError("gone"), r"Ray Tune has ended \(System error: gone\)"),
        (TuneError("Traceback\n  line 3\nKeyError: 'x'\n"), r"Ray Tune has ended \(KeyError: 'x'\)"),
        (_from(TuneError("Traceback\nOSError: no route\n"), OSError("no route")), r"\(OSError: no route\)"),
    ],
)
def test_what_ends_ray_pauses_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    with pytest.raises(Paused, match=said) as caught:
        _ended_by(error, tmp_path, monkeypatch)
    assert caught.value.exit_code == 1
    assert Drive(tmp_path, trials=2).states() == ["RUNNING"]  # it goes on with the next start


@pytest.mark.parametrize("own", [KeyError("x"), AssertionError(), RuntimeError("ours"), AnyoError("said")])
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_is_not_of_ray_is_a_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: Exception, wrapped: bool
) -> None:
    error = _from(TuneError("Traceback"), own) if wrapped else own
    with pytest.raises(type(own)) as caught:
        _ended_by(error, tmp_path, monkeypatch)
    assert caught.value is own
    assert not isinstance(caught.value, Paused)


def test_a_death_names_what_may_have_caused_it(drive: Drive) -> None:
    assert running_search().death() == "its worker died; trial.log says what it did last"
    running_search().stall_minutes = 2.5
    assert "no epoch was reported for tuning.stall_minutes=2.5" in running_search().death()


def test_a_result_without_a_report_is_passed_over(drive: Drive) -> None:
    StudySearcher().suggest("a")
    answer = StudyScheduler().on_trial_result(None, FakeTrial("a"), {"done": True})  # type: ignore[arg-type]
    assert (answer, drive.states()) == (TrialScheduler.CONTINUE, ["RUNNING"])


def test_a_halted_search_leaves_tunes_loop_and_asks_no_more(drive: Drive) -> None:
    searcher = StudySearcher()
    searcher.suggest("a")
    TuneCallback().on_step_begin(1, [])
    drive.dispatcher.halt("terminated")
    assert searcher.suggest("b") == Searcher.FINISHED
    with pytest.raises(_Halt):
        TuneCallback().on_step_begin(2, [])
    searcher.on_trial_complete("a", {})
    assert drive.states() == ["RUNNING"]


def test_a_full_disk_at_the_start_of_a_trial_halts(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(executor, "remember_children", full)
    TuneCallback().on_trial_start(1, [], FakeTrial("a"))  # type: ignore[arg-type]
    assert drive.dispatcher.halted == "the result folder cannot be written (No space left on device)"


def test_a_populations_worker_is_told_who_goes_on_and_who_joins(drive: Drive) -> None:
    dispatcher = running_search().dispatcher
    dispatcher.population_size, dispatcher.group, drive.searches[0].trials = 2, lambda values: "numbers", 4
    searcher, scheduler = StudySearcher(), StudyScheduler()
    first, config = searcher.suggest("a"), searcher.suggest("b")
    assert isinstance(first, dict)
    assert "members" not in first  # the first trial is alone
    assert isinstance(config, dict)
    assert [member["number"] for member in config["members"]] == [1, 2]
    assert config["share"] == 0.25
    one, two = (member["start"] for member in config["members"])
    epoch = {"kind": "epoch", "epoch": 1, "objective": 0.5}
    reports = [[one, epoch], [one, {"kind": "done", "values": [0.5], "attributes": {}}], [two, epoch]]
    told = result(kind="round", round=1, reports=reports)
    assert scheduler.on_trial_result(None, FakeTrial("b"), told) == TrialScheduler.CONTINUE  # type: ignore[arg-type]
    decided = json.loads(drive.store.read(config["orders"]) or b"")
    assert (decided["round"], decided["stay"]) == (1, [two])
    assert [member["number"] for member in decided["joined"]] == [3]
    assert drive.states() == ["RUNNING", "COMPLETE", "RUNNING", "RUNNING"]
    # a worker that dies leaves its open trials to others, half as many at once
    scheduler.on_trial_error(None, FakeTrial.ended_by("b", ActorDiedError(), drive.folder))  # type: ignore[arg-type]
    assert [[job.number for job in dispatcher.together()] for _ in range(2)] == [[2], [3]]
