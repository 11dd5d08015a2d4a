"""What each report of a worker does to the record and to the files, without Ray."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState

from src.core.errors import TrainingFailed
from src.core.paths import MANIFEST, write_json
from src.tuning.dispatch import CHECKPOINT, MODEL, TRACEBACK, Dispatcher, Job, Search, states
from src.tuning.finalists import Finalist
from src.tuning.journal import open_journal
from src.tuning.kept_models import TRIAL_FILE, keep_model
from src.tuning.search import published
from src.tuning.search_session import SearchSession
from src.tuning.search_space import FloatParameter, SearchSpace
from src.tuning.settings import TuningSettings
from src.tuning.store import Store
from src.tuning.study import Record

SPACE = SearchSpace(
    "distill", {"ndcg_20": "maximize"}, {"distill.lam": FloatParameter(type="float", low=0.0, high=1.0)}
)
TUNING = TuningSettings(pruner_startup_trials=1, pruner_warmup_epochs=0)


class Drive:
    """A dispatcher over one search of some trials, and its worker's side."""

    def __init__(self, folder: Path, trials: int = 4, retries: int = 2, space: SearchSpace = SPACE) -> None:
        self.folder, self.bound = folder, ""
        tuning = TuningSettings(pruner="none") if len(space.objectives) > 1 else TUNING
        first: list[Any] = [{"distill.lam": 0.0}]
        self.record = Record.open(open_journal(folder), "search", space, tuning, 3, 9, "identity", first, 1)
        self.store = Store(str(folder / "trials"))
        self.searches = [Search(self.record, trials, keep=2)]
        self.dispatcher = Dispatcher(self.searches, self.store, retries, over_bound=lambda: self.bound)

    def start(self) -> Job:
        job = self.dispatcher.next()
        assert job is not None
        self.store.write(f"{job.folder}/{CHECKPOINT}", b"state")
        return job

    def epoch(self, job: Job, epoch: int, value: float) -> bool:
        return self.dispatcher.on_report(job.start, {"kind": "epoch", "epoch": epoch, "objective": value})

    def done(self, job: Job, *values: float) -> None:
        self.store.write(f"{job.folder}/{MODEL}/model.safetensors", b"weights")
        self.dispatcher.on_report(job.start, {"kind": "done", "values": values, "attributes": {"weights": "abc"}})
        self.dispatcher.on_end(job.start)

    def say(self, job: Job, kind: str, reason: str = "because") -> bool:
        stop = self.dispatcher.on_report(job.start, {"kind": kind, "reason": reason})
        self.dispatcher.on_end(job.start)
        return stop

    def states(self) -> list[str]:
        return [trial.state.name for trial in self.record.trials()]

    def failure(self, number: int) -> str:
        return str(self.record.trials()[number].user_attrs["failure"])

    def files(self, number: int) -> set[str]:
        folder = self.folder / "trials" / str(number)
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


@pytest.fixture
def drive(tmp_path: Path) -> Drive:
    return Drive(tmp_path)


class Kept:
    """A trained model of one file."""

    @staticmethod
    def save(folder: Path) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        write_json(folder / MANIFEST, {"kind": "student"})


def lose(model: Path, way: str) -> None:
    """What happens to a trial's model while nobody looks."""
    match way:
        case "gone":
            shutil.rmtree(model)
        case "empty":
            shutil.rmtree(model)
            model.mkdir()
        case "a flipped byte":
            (model / "model.safetensors").write_bytes(b"weighty")
        case "a file less":
            (model / "model.safetensors").unlink()
        case "half a note":
            (model / TRIAL_FILE).write_text('{"values": ')


LOSSES = ["gone", "empty", "a flipped byte", "a file less", "half a note"]


@pytest.mark.parametrize("way", LOSSES)
def test_a_winner_whose_model_is_gone_or_damaged_gives_way_to_the_next_best(
    drive: Drive, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    (search,) = drive.searches
    for number, value in enumerate((0.1, 0.4, 0.3)):
        drive.done(drive.start(), value)
        kept: Any = Kept()
        keep_model(kept, {"distill.lam": value}, {}, drive.folder / "new", drive.store, f"{number}/{MODEL}")
        shutil.rmtree(drive.folder / "new")
    folders = [drive.folder / "trials" / f"{number}" / MODEL for number in range(3)]

    def fetch(number: int) -> Path | None:
        return SearchSession.fetch(SimpleNamespace(store=drive.store, scratch=drive.folder), search, number)  # type: ignore[arg-type]

    trial, model, gone = published(search, [], fetch)
    assert (trial.number, model, gone) == (1, folders[1], [])
    trial, model, gone = published(search, [Finalist(2, (0.5,)), Finalist(1, (0.2,))], fetch)
    assert (trial.number, model, gone) == (2, folders[2], [])
    assert not caplog.messages
    lose(folders[1], way)
    trial, model, gone = published(search, [], fetch)
    assert (trial.number, model, gone) == (2, folders[2], [1])
    assert caplog.messages[-1] == "the model of trial 1 is gone: trial 2 is published in its place"
    lose(folders[2], way)
    with pytest.raises(TrainingFailed, match="no completed trial has its model any more"):
        published(search, [], fetch)


def test_the_first_trial_is_the_given_one_and_the_number_is_exact(drive: Drive) -> None:
    jobs = [drive.start() for _ in range(4)]
    assert [job.number for job in jobs] == [0, 1, 2, 3]
    assert jobs[0].values == {"distill.lam": 0.0}
    assert drive.dispatcher.next() is None
    assert not drive.dispatcher.finished
    for job in jobs:
        drive.done(job, 0.5)
    assert drive.dispatcher.finished
    assert drive.states() == ["COMPLETE"] * 4


def test_a_completed_trial_has_its_value_attributes_and_curve(drive: Drive) -> None:
    job = drive.start()
    assert not drive.epoch(job, 1, 0.3)
    assert not drive.epoch(job, 2, 0.2)
    drive.done(job, 0.3)
    trial = drive.record.trials()[0]
    assert (trial.values, trial.intermediate_values) == ([0.3], {1: 0.3, 2: 0.2})
    assert trial.user_attrs == {"weights": "abc"}


def test_a_poor_trial_is_pruned_keeps_its_values_and_loses_its_files(drive: Drive) -> None:
    first, second = drive.start(), drive.start()
    drive.epoch(first, 1, 0.5)
    drive.done(first, 0.5)
    assert drive.epoch(second, 1, 0.1)
    assert drive.states() == ["COMPLETE", "PRUNED"]
    assert drive.record.trials()[1].intermediate_values == {1: 0.1}
    assert drive.files(1) == set()
    # what Ray still tells of it changes nothing
    assert drive.epoch(second, 2, 0.9)
    drive.dispatcher.on_end(second.start)
    assert drive.record.trials()[1].intermediate_values == {1: 0.1}


def test_the_first_trial_is_never_pruned(drive: Drive) -> None:
    first, second = drive.start(), drive.start()
    drive.epoch(second, 1, 0.5)
    drive.done(second, 0.5)
    assert not drive.epoch(first, 1, 0.0)


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        ({"kind": "failed", "reason": "ndcg_20 of epoch 2 is nan"}, "ndcg_20 of epoch 2 is nan"),
        ({"loss": 1.0}, "a report without a known kind: ['loss']"),
        ({"kind": "done", "values": [float("nan")], "attributes": {}}, "the objectives ['ndcg_20'] are [nan]"),
        ({"kind": "done", "values": [float("inf")], "attributes": {}}, "the objectives ['ndcg_20'] are [inf]"),
    ],
)
def test_bad_reports_fail_their_trial_and_the_search_goes_on(drive: Drive, report: dict[str, Any], reason: str) -> None:
    first = drive.start()
    assert drive.dispatcher.on_report(first.start, report)
    drive.dispatcher.on_end(first.start)
    assert (drive.states(), drive.failure(0)) == (["FAIL"], reason)
    drive.done(drive.start(), 0.2)
    assert drive.states() == ["FAIL", "COMPLETE"]
    assert drive.record.best().number == 1  # type: ignore[union-attr]


def test_a_trainable_that_returns_nothing_failed(drive: Drive) -> None:
    job = drive.start()
    drive.dispatcher.on_end(job.start)
    assert drive.failure(0) == "the training function ended without a result"


def test_an_exception_is_a_failure_whose_traceback_is_kept(drive: Drive) -> None:
    job = drive.start()
    drive.dispatcher.on_error(job.start, "Traceback ...\n  line 3\nZeroDivisionError: division by zero")
    assert drive.failure(0) == "ZeroDivisionError: division by zero"
    assert b"line 3" in (drive.store.read(f"0/{TRACEBACK}") or b"")
    assert CHECKPOINT not in drive.files(0)


def test_a_killed_workers_trial_goes_on_twice_and_then_fails(drive: Drive) -> None:
    job = drive.start()
    for _ in range(2):
        drive.dispatcher.on_death(job.start, "its worker died")
        assert drive.states() == ["RUNNING"]
        assert CHECKPOINT in drive.files(0)
        again = drive.start()
        assert (again.number, again.values) == (0, job.values)
        assert again.start != job.start
        job = again
    drive.dispatcher.on_death(job.start, "its worker died")
    assert drive.failure(0) == "its worker died (tried 3 times)"
    assert drive.start().number == 1


def test_a_machine_that_ends_every_worker_halts_the_search_and_fails_no_trial(drive: Drive) -> None:
    for _ in range(2):
        drive.dispatcher.on_loss([drive.start().start], "no memory")
    before = drive.dispatcher.halted
    drive.dispatcher.on_loss([drive.start().start], "no memory")
    assert (before, drive.dispatcher.halted) == ("", "no memory (3 times, and no trial ended in between)")
    assert drive.states() == ["RUNNING"]


def test_a_trial_that_is_lost_again_and_again_fails_where_others_end(drive: Drive) -> None:
    job = drive.start()
    for _ in range(2):
        drive.dispatcher.on_loss([job.start], "no memory")
        job = drive.start()
    other = drive.start()
    assert (job.number, other.number) == (0, 1)
    drive.done(other, 0.5)
    drive.dispatcher.on_loss([job.start], "no memory")
    assert not drive.dispatcher.halted
    assert (drive.states(), drive.failure(0)) == (["FAIL", "COMPLETE"], "no memory (tried 3 times)")


def test_without_retries_a_loss_fails_its_trial_where_others_end_and_else_halts(tmp_path: Path) -> None:
    drive = Drive(tmp_path, retries=0)
    lost, other = drive.start(), drive.start()
    drive.done(other, 0.5)
    drive.dispatcher.on_loss([lost.start], "no memory")
    assert not drive.dispatcher.halted
    assert (drive.states(), drive.failure(0)) == (["FAIL", "COMPLETE"], "no memory (tried 1 times)")
    drive.dispatcher.on_loss([drive.start().start], "no memory")
    assert "no trial ended in between" in drive.dispatcher.halted
    assert drive.states() == ["FAIL", "COMPLETE", "RUNNING"]


def test_a_worker_of_several_trials_is_lost_once(drive: Drive) -> None:
    for _ in range(3):
        assert not drive.dispatcher.halted
        drive.dispatcher.on_loss([drive.start().start, drive.start().start], "no memory")
    assert drive.dispatcher.halted == "no memory (3 times, and no trial ended in between)"
    assert drive.states() == ["RUNNING", "RUNNING"]


def test_a_trial_that_ends_its_worker_again_and_again_takes_no_other_with_it(tmp_path: Path) -> None:
    """Whose fault it was that a population's worker died is known when each is alone."""
    drive, sizes = Drive(tmp_path, trials=9, retries=1), list[int]()
    drive.dispatcher.population_size, drive.dispatcher.group = 8, lambda values: "one"
    while jobs := drive.dispatcher.together():
        sizes.append(len(jobs))
        for job in jobs:
            drive.store.write(f"{job.folder}/{CHECKPOINT}", b"state")
        if any(job.number == 5 for job in jobs):
            for job in jobs:
                drive.dispatcher.on_death(job.start, "its worker died")
        else:
            for job in jobs:
                drive.done(job, 0.5)
    # trial 0; eight; the half of it that has trial 5 dies again, and so does each half of that
    assert sizes == [1, 8, 4, 4, 2, 2, 1, 1]
    assert drive.states() == ["FAIL" if number == 5 else "COMPLETE" for number in range(9)]
    assert drive.failure(5) == "its worker died (tried 4 times)"


def test_how_often_a_worker_died_survives_a_restart(tmp_path: Path) -> None:
    drive = Drive(tmp_path)
    drive.dispatcher.on_death(drive.start().start, "its worker died")
    again = Drive(tmp_path).start()
    assert (again.restarts, again.memory_retries, again.halvings) == (1, 0, 1)


def test_out_of_memory_goes_back_with_a_larger_share_at_most_twice(drive: Drive) -> None:
    job = drive.start()
    for retry in (1, 2):
        assert drive.say(job, "memory", "out of GPU memory")
        assert drive.states() == ["RUNNING"]
        job = drive.start()
        assert (job.number, job.memory_retries) == (0, retry)
    assert drive.say(job, "memory", "out of GPU memory")
    assert drive.failure(0) == "out of GPU memory (tried 3 times)"


def test_the_number_of_retries_survives_a_restart(tmp_path: Path) -> None:
    drive = Drive(tmp_path)
    drive.say(drive.start(), "memory")
    assert Drive(tmp_path).start().memory_retries == 1


def test_a_full_disk_halts_and_leaves_the_trial_for_the_next_start(drive: Drive) -> None:
    first, second = drive.start(), drive.start()
    assert drive.say(first, "disk", "the disk is full")
    assert drive.dispatcher.halted == "the disk is full"
    assert drive.epoch(second, 1, 0.4), "nothing is written any more"
    assert drive.dispatcher.next() is None
    assert drive.states() == ["RUNNING", "RUNNING"]


def test_a_record_that_cannot_be_written_halts(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    job = drive.start()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(drive.record, "write_value", full)
    assert drive.epoch(job, 1, 0.3)
    assert drive.dispatcher.halted == "the record cannot be written (No space left on device)"
    assert drive.states() == ["RUNNING"]


def test_only_the_best_keep_model_and_checkpoint(drive: Drive) -> None:
    for value in (0.4, 0.6, 0.4, 0.5):
        drive.done(drive.start(), value)
    assert [drive.files(number) for number in range(4)] == [set(), {MODEL, CHECKPOINT}, set(), {MODEL, CHECKPOINT}]


def test_files_are_removed_once_however_many_trials_follow(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    remove = Store.remove
    monkeypatch.setattr(Store, "remove", lambda store, name: (removed.append(name), remove(store, name)))
    for value in (0.4, 0.6, 0.5, 0.3):
        drive.done(drive.start(), value)
    assert removed == [f"{number}/{name}" for number in (0, 3) for name in (MODEL, CHECKPOINT)]


def test_over_its_bound_the_search_keeps_one_model_and_pauses_if_that_does_not_help(drive: Drive) -> None:
    for value in (0.4, 0.6):
        drive.done(drive.start(), value)
    drive.bound = "the folder holds 12 MB of 10"
    assert drive.dispatcher.next() is None
    assert drive.dispatcher.halted == "the folder holds 12 MB of 10"
    assert [drive.files(number) for number in range(2)] == [set(), {MODEL, CHECKPOINT}]
    assert drive.states() == ["COMPLETE", "COMPLETE"]


def test_over_its_bound_no_model_is_removed_that_is_needed_at_the_end(drive: Drive) -> None:
    (search,) = drive.searches
    search.needed, search.keep = True, 4
    for value in (0.1, 0.2, 0.3):
        drive.done(drive.start(), value)
    drive.bound = "too large"
    assert drive.dispatcher.next() is None
    assert drive.dispatcher.halted == "too large"
    assert all(MODEL in drive.files(number) for number in range(3))


def test_interrupted_trials_come_first_with_their_own_values(tmp_path: Path) -> None:
    drive = Drive(tmp_path)
    jobs = [drive.start() for _ in range(3)]
    drive.done(jobs[1], 0.5)
    again = Drive(tmp_path)
    resumed = [again.start() for _ in range(3)]
    assert [job.number for job in resumed] == [0, 2, 3]
    assert [job.values for job in resumed[:2]] == [jobs[0].values, jobs[2].values]


def test_several_objectives_keep_their_curves_and_their_front(tmp_path: Path) -> None:
    space = SearchSpace("distill", {"ndcg_20": "maximize", "parameters": "minimize"}, SPACE.parameters)
    drive = Drive(tmp_path, space=space)
    for values in ((0.5, 300.0), (0.4, 100.0), (0.3, 200.0)):
        job = drive.start()
        assert not drive.epoch(job, 1, values[0])
        drive.done(job, *values)
    # (0.3, 200) is beaten in both by (0.4, 100)
    assert drive.record.front() == [0, 1]
    assert drive.record.best().number == 0  # type: ignore[union-attr]
    assert [trial.intermediate_values for trial in drive.record.trials()] == [{1: 0.5}, {1: 0.4}, {1: 0.3}]
    counts = states(drive.searches)
    assert counts[TrialState.COMPLETE] == 3


def test_several_searches_are_worked_through_one_after_the_other(tmp_path: Path) -> None:
    storage = open_journal(tmp_path)
    searches = [
        Search(Record.open(storage, name, SPACE, TUNING, 3, 9, name), 2, keep=1, place=f"{name}/") for name in "ab"
    ]
    dispatcher = Dispatcher(searches, Store(str(tmp_path / "trials")), 0)
    jobs = [dispatcher.next() for _ in range(5)]
    assert [job and job.folder for job in jobs] == ["a/0", "a/1", "b/0", "b/1", None]
    # the same seed and number: what the arms of a comparison share is drawn alike
    assert jobs[0].values == jobs[2].values  # type: ignore[union-attr]


def test_what_follows_is_drawn_up_when_the_last_trial_has_ended(tmp_path: Path) -> None:
    storage, drawn, told = open_journal(tmp_path), [], []

    def search(name: str) -> Search:
        return Search(Record.open(storage, name, SPACE, TUNING, 3, 9, name), 2, keep=1, place=f"{name}/")

    def phases() -> Iterator[list[Search]]:
        drawn.append("second")
        yield [search("b")]
        drawn.append("third")
        yield []

    first = [search("a")]
    dispatcher = Dispatcher(first, Store(str(tmp_path / "trials")), 0, phases=phases(), on_phase=told.extend)
    done = {"kind": "done", "values": [0.1], "attributes": {}}
    one, two = dispatcher.next(), dispatcher.next()
    assert one is not None
    assert two is not None
    dispatcher.on_report(two.start, done)
    assert (dispatcher.next(), drawn, dispatcher.finished) == (None, [], False)
    dispatcher.on_report(one.start, done)
    assert drawn == []  # only who asks for another trial gets one
    three = dispatcher.next()
    assert three is not None
    assert (three.folder, drawn, [search.name for search in told]) == ("b/0", ["second"], ["b"])
    assert three.start not in (one.start, two.start)  # a worker of the first phase is told from one of the second
    dispatcher.halt("a signal")
    assert dispatcher.next() is None
    # the next start goes on with the trial that was left, at once
    again = Dispatcher(first, Store(str(tmp_path / "trials")), 0, phases=phases())
    job = again.next()
    assert job is not None
    assert job.folder == "b/0"
    for left in (job, again.next()):
        assert left is not None
        again.on_report(left.start, done)
    assert (again.next(), again.finished, drawn) == (None, True, ["second", "second", "third"])


def test_workers_that_were_lost_in_one_phase_are_not_counted_in_the_next(tmp_path: Path) -> None:
    storage, done = open_journal(tmp_path), {"kind": "done", "values": [0.1], "attributes": {}}
    first, second = (
        [Search(Record.open(storage, name, SPACE, TUNING, 3, 9, name), 1, keep=1, place=f"{name}/")] for name in "ab"
    )
    dispatcher = Dispatcher(first, Store(str(tmp_path / "trials")), 1, phases=[second])
    job = dispatcher.next()
    assert job is not None
    dispatcher.on_loss([job.start], "no memory")
    again = dispatcher.next()
    assert again is not None
    dispatcher.on_report(again.start, done)
    job = dispatcher.next()
    assert job is not None
    assert job.folder == "b/0"
    dispatcher.on_loss([job.start], "no memory")
    assert (dispatcher.halted, dispatcher.next() is not None) == ("", True)


def test_a_search_that_was_halted_goes_on_to_nothing(tmp_path: Path) -> None:
    record = Record.open(open_journal(tmp_path), "a", SPACE, TUNING, 3, 9, "a")

    def phases() -> Iterator[list[Search]]:
        raise AssertionError("drawn up")
        yield []

    halted = Dispatcher([Search(record, 0, keep=1)], Store(str(tmp_path / "trials")), 0, halted="x", phases=phases())
    assert halted.next() is None
