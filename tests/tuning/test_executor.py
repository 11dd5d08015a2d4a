"""The searcher and the scheduler as Ray drives them, without Ray."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayActorError
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from src.core.errors import AnyoError, Paused
from src.tuning import executor
from src.tuning.executor import StudyScheduler, StudySearcher, Watch, _Desk, _Halt
from src.tuning.resources import CONTEXT_BYTES, Resources
from src.tuning.trainable import MESSAGE
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
    desk = _Desk(driver.dispatcher, Resources(cpu=1.0, gpu=0.25), tmp_path, tmp_path, lambda: {"CPU": 2.0, "GPU": 1.0})
    monkeypatch.setattr(executor, "_desk", desk)
    return driver


def result(**report: Any) -> dict[str, Any]:
    """A result as it comes from a worker."""
    return {MESSAGE: json.dumps(report), "training_iteration": 1}


def test_without_a_search_there_is_no_desk() -> None:
    with pytest.raises(AnyoError, match="no search is running"):
        executor.desk()


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
    executor.desk().total = lambda: total
    searcher, scheduler = StudySearcher(), StudyScheduler()
    assert isinstance(searcher.suggest("a"), dict)
    assert searcher.suggest("b") is None
    assert drive.states() == ["RUNNING"]
    scheduler.on_trial_result(None, FakeTrial("a"), result(kind="done", values=[0.5], attributes={}))  # type: ignore[arg-type]
    assert isinstance(searcher.suggest("b"), dict)


def test_in_a_cluster_one_trial_waits_so_that_it_can_grow(drive: Drive) -> None:
    executor.desk().total = None
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
    executor.desk().resources = Resources(cpu=1.0, gpu=0.6, free=10 * 2**30)
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


def test_a_death_names_what_may_have_caused_it(drive: Drive) -> None:
    assert executor.desk().death() == "its worker died; trial.log says what it did last"
    executor.desk().stall_minutes = 2.5
    assert "no epoch was reported for tuning.stall_minutes=2.5" in executor.desk().death()


def test_a_result_without_a_report_is_passed_over(drive: Drive) -> None:
    StudySearcher().suggest("a")
    answer = StudyScheduler().on_trial_result(None, FakeTrial("a"), {"done": True})  # type: ignore[arg-type]
    assert (answer, drive.states()) == (TrialScheduler.CONTINUE, ["RUNNING"])


def test_a_halted_search_leaves_tunes_loop_and_asks_no_more(drive: Drive) -> None:
    searcher = StudySearcher()
    searcher.suggest("a")
    Watch().on_step_begin(1, [])
    drive.dispatcher.halt("terminated")
    assert searcher.suggest("b") == Searcher.FINISHED
    with pytest.raises(_Halt):
        Watch().on_step_begin(2, [])
    searcher.on_trial_complete("a", {})
    assert drive.states() == ["RUNNING"]


def test_a_machine_without_memory_pauses_the_search(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit() -> None:
        try:
            raise why
        except Exception as error:
            raise RuntimeError("Caught unexpected exception") from error

    monkeypatch.setattr(executor, "_tuner", lambda *_: SimpleNamespace(fit=fit))
    monkeypatch.setattr(ray, "cluster_resources", dict)
    given = (SimpleNamespace(stall_minutes=0.0), Resources(cpu=1.0, gpu=0.0), drive.folder, drive.folder, False)
    why: Exception = ValueError("a defect")
    with pytest.raises(RuntimeError, match="unexpected"):
        executor.execute(drive.dispatcher, *given)  # type: ignore[arg-type]
    why = OutOfMemoryError("1 worker was killed")
    with pytest.raises(Paused, match="memory was nearly full"):
        executor.execute(drive.dispatcher, *given)  # type: ignore[arg-type]


def test_a_full_disk_at_the_start_of_a_trial_halts(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(executor, "remember_children", full)
    Watch().on_trial_start(1, [], FakeTrial("a"))  # type: ignore[arg-type]
    assert drive.dispatcher.halted == "the result folder cannot be written (No space left on device)"


def test_a_populations_worker_is_told_who_goes_on_and_who_joins(drive: Drive) -> None:
    dispatcher = executor.desk().dispatcher
    dispatcher.places, dispatcher.group, drive.searches[0].trials = 2, lambda values: "numbers", 4
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
    # a worker that dies leaves its open trials to others
    scheduler.on_trial_error(None, FakeTrial.ended_by("b", ActorDiedError(), drive.folder))  # type: ignore[arg-type]
    assert [job.number for job in dispatcher.together()] == [2, 3]
