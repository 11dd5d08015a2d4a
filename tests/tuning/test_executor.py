"""The searcher and the scheduler as Ray drives them, without Ray: how each end of a trial reaches the study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from src.core.errors import AnyoError
from src.core.paths import write_json, write_text
from src.tuning import executor
from src.tuning.executor import Board, StudyScheduler, StudySearcher
from src.tuning.search_space import FloatParameter, SearchSpace
from src.tuning.settings import TuningSettings
from src.tuning.study import Record
from src.tuning.trainable import FAILURE, RESULT, STUDENT

SPACE = SearchSpace("ndcg_20", {"distill.lam": FloatParameter(type="float", low=0.0, high=1.0)})


@dataclass
class FakeTrial:
    """What the scheduler reads of a Ray trial."""

    trial_id: str
    error_file: str | None = None


class Drive:
    """Ray's side of a search of four trials."""

    def __init__(self, folder: Path) -> None:
        tuning = TuningSettings(trials=4, keep_top=2, pruner_startup_trials=1, pruner_warmup_epochs=0)
        self.changes = 0
        record = Record.create(folder, SPACE, tuning, seed=3)
        self.board = Board(record, {"distill.lam": 0.0}, 4, folder / "trials", 2, self._changed)
        self.searcher, self.scheduler = StudySearcher(), StudyScheduler()

    def _changed(self) -> None:
        self.changes += 1

    def start(self, name: str) -> FakeTrial:
        proposal = self.searcher.suggest(name)
        assert isinstance(proposal, dict)
        return FakeTrial(name)

    def report(self, trial: FakeTrial, epoch: int, value: float) -> str:
        result = {"objective": value, "epoch": epoch, "ndcg_20": value}
        return self.scheduler.on_trial_result(None, trial, result)  # type: ignore[arg-type]

    def leave(self, trial: FakeTrial, value: float) -> None:
        """What the trainable writes at its end."""
        folder = self.folder(trial)
        fit = {"epochs": 1, "best_epoch": 1, "seconds": 0.5, "best_metrics": {"ndcg_20": value, "recall_20": 0.5}}
        write_json(folder / RESULT, {"fit": fit, "weights": "abc"})
        write_json(folder / STUDENT / "manifest.json", {})

    def complete(self, trial: FakeTrial, value: float) -> None:
        self.report(trial, 1, value)
        self.leave(trial, value)
        self.searcher.on_trial_complete(trial.trial_id, {"done": True})

    def folder(self, trial: FakeTrial) -> Path:
        return self.board.folder / str(self.board.numbers[trial.trial_id])

    def states(self) -> list[TrialState]:
        return [trial.state for trial in self.board.record.trials()]

    def attributes(self, number: int) -> dict[str, Any]:
        return self.board.record.trials()[number].user_attrs


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drive:
    driver = Drive(tmp_path)
    monkeypatch.setattr(executor, "_board", driver.board)
    return driver


def test_without_a_search_there_is_no_board() -> None:
    with pytest.raises(AnyoError, match="no search is running"):
        executor.board()


def test_the_first_proposal_is_the_given_one_and_the_search_ends_at_its_number(drive: Drive) -> None:
    first = drive.searcher.suggest("a")
    assert first == {"number": 0, "values": {"distill.lam": 0.0}}
    others = [drive.searcher.suggest(name) for name in "bcd"]
    assert [proposal["number"] for proposal in others] == [1, 2, 3]  # type: ignore[index]
    assert drive.searcher.suggest("e") == Searcher.FINISHED
    assert len(drive.states()) == 4


def test_a_completed_trials_value_comes_from_its_own_file(drive: Drive) -> None:
    trial = drive.start("a")
    assert drive.report(trial, 1, 0.3) == TrialScheduler.CONTINUE
    drive.leave(trial, 0.3)
    # Ray's last result is not the best one, and may even be empty
    drive.searcher.on_trial_complete("a", {"objective": 0.1, "done": True})
    ended = drive.board.record.trials()[0]
    assert (ended.state, ended.value, ended.intermediate_values) == (TrialState.COMPLETE, 0.3, {1: 0.3})
    assert drive.attributes(0)["metrics"] == {"ndcg_20": 0.3, "recall_20": 0.5}
    assert drive.attributes(0)["weights"] == "abc"
    assert drive.changes == 2


def test_a_trial_without_a_result_failed(drive: Drive) -> None:
    drive.start("a")
    drive.searcher.on_trial_complete("a", {"done": True})
    assert drive.states() == [TrialState.FAIL]
    assert drive.attributes(0)["failure"] == "the trial ended without a result"


def test_a_trials_own_reason_is_the_failures_reason(drive: Drive) -> None:
    trial = drive.start("a")
    write_text(drive.folder(trial) / FAILURE, "the training loss of epoch 1 is nan\n")
    drive.searcher.on_trial_complete("a", {"done": True})
    assert drive.attributes(0)["failure"] == "the training loss of epoch 1 is nan"


def test_an_exceptions_text_is_kept_and_its_last_line_is_the_reason(drive: Drive, tmp_path: Path) -> None:
    trial = drive.start("a")
    write_text(tmp_path / "ray_error.txt", "Traceback ...\n  line 3\nZeroDivisionError: division by zero\n")
    trial.error_file = str(tmp_path / "ray_error.txt")
    drive.scheduler.on_trial_error(None, trial)  # type: ignore[arg-type]
    drive.searcher.on_trial_complete("a", None, error=True)
    assert drive.states() == [TrialState.FAIL]
    assert drive.attributes(0)["failure"] == "ZeroDivisionError: division by zero"
    assert "line 3" in (drive.folder(trial) / "error.txt").read_text()


@pytest.mark.parametrize("error_file", [None, "/nowhere/error.txt"])
def test_a_worker_that_died_without_a_word_failed(drive: Drive, error_file: str | None) -> None:
    trial = drive.start("a")
    trial.error_file = error_file
    drive.scheduler.on_trial_error(None, trial)  # type: ignore[arg-type]
    drive.searcher.on_trial_complete("a", None, error=True)
    assert drive.attributes(0)["failure"] == "the worker died"


def test_a_report_without_the_objective_is_passed_over(drive: Drive) -> None:
    trial = drive.start("a")
    answer = drive.scheduler.on_trial_result(None, trial, {"training_iteration": 1})  # type: ignore[arg-type]
    assert answer == TrialScheduler.CONTINUE
    assert drive.board.record.trials()[0].intermediate_values == {}


def test_a_poor_trial_is_stopped_once_and_stays_so(drive: Drive) -> None:
    first, second = drive.start("a"), drive.start("b")
    drive.complete(first, 0.5)
    assert drive.report(second, 1, 0.1) == TrialScheduler.STOP
    assert drive.states() == [TrialState.COMPLETE, TrialState.PRUNED]
    # the completion that Ray tells afterwards, and a late report, change nothing
    drive.leave(second, 0.9)
    drive.searcher.on_trial_complete("b", {"done": True})
    assert drive.report(second, 2, 0.9) == TrialScheduler.CONTINUE
    ended = drive.board.record.trials()[1]
    assert (ended.state, ended.intermediate_values) == (TrialState.PRUNED, {1: 0.1})


def test_the_first_trial_is_never_stopped(drive: Drive) -> None:
    first, second = drive.start("a"), drive.start("b")
    drive.complete(second, 0.5)
    assert drive.report(first, 1, 0.0) == TrialScheduler.CONTINUE


def test_only_the_best_trials_keep_their_students(drive: Drive) -> None:
    trials = [drive.start(name) for name in "abcd"]
    for trial, value in zip(trials, (0.4, 0.6, 0.4, 0.5), strict=True):
        drive.leave(trial, value)
        drive.searcher.on_trial_complete(trial.trial_id, {"done": True})
    kept = [(drive.folder(trial) / STUDENT).exists() for trial in trials]
    assert kept == [False, True, False, True]
    assert all((drive.folder(trial) / RESULT).exists() for trial in trials)
    best = drive.board.record.best()
    assert best is not None
    assert (best.number, kept[best.number]) == (1, True)


def test_a_failed_trial_does_not_end_the_search(drive: Drive) -> None:
    first, second = drive.start("a"), drive.start("b")
    drive.searcher.on_trial_complete(first.trial_id, None, error=True)
    drive.complete(second, 0.2)
    assert drive.states() == [TrialState.FAIL, TrialState.COMPLETE]
    assert drive.searcher.suggest("c") != Searcher.FINISHED


def test_a_failing_trainable_ends_quietly_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from src.core.errors import TrainingFailed
    from src.tuning.trainable import Trainable
    from tests.pipeline.toy import toy_settings

    def explode(*_: object) -> None:
        raise TrainingFailed("the training loss of epoch 2 is nan")

    trainable = Trainable(toy_settings(tmp_path), "ndcg_20", tmp_path / "trials")
    monkeypatch.setattr(Trainable, "_train", explode)
    trainable({"number": 5, "values": {}}, SimpleNamespace())  # type: ignore[arg-type]
    assert (tmp_path / "trials" / "5" / FAILURE).read_text() == "the training loss of epoch 2 is nan\n"
    assert not (tmp_path / "trials" / "5" / RESULT).exists()
