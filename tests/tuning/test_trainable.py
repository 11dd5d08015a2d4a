"""A trial in its worker, without Ray: what it tells, what it leaves in its log, and when it must not write."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from src.config.reading import read_settings
from src.core.errors import ConfigError, Problem, TrainingFailed
from src.tuning import trainable
from src.tuning.search_settings import SearchSettings, experiment
from src.tuning.search_space import SearchSpace
from src.tuning.store import Store
from src.tuning.trainable import TOKEN, Trainable, reason_of
from src.tuning.trial_values import apply_values
from tests.tuning.test_store import Bucket

CONFIG = {"number": 0, "values": {}, "folder": "0", "share": 0.0}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """What the worker says; no data is loaded."""
    messages: list[Mapping[str, Any]] = []
    monkeypatch.setattr(trainable, "tell", messages.append)
    monkeypatch.setattr(trainable.SharedData, "load", lambda folder, device: None)
    return messages


def worker(store: Store) -> Trainable:
    settings = experiment(read_settings("tune_student", ["dataset=sample"], SearchSettings)[0])
    store.write(TOKEN, b"mine")
    return Trainable(settings, SearchSpace("student", {"ndcg_20": "maximize"}, {}), store, "mine", 0.0)


def rule_broken(values: dict[str, Any]) -> ValidationError:
    settings = experiment(read_settings("tune_student", ["dataset=sample"], SearchSettings)[0])
    with pytest.raises(ValidationError) as caught:
        apply_values(settings, values)
    return caught.value


def test_a_reason_of_failure_is_one_line_in_our_words() -> None:
    between = rule_broken({"student.width": 30, "student.heads": 4})
    assert reason_of(between) == "student: heads = 4 must divide width = 30"
    own = rule_broken({"student.width": 0, "student.dropout": 2.0})
    assert reason_of(own) == (
        "student.width = 0: Input should be greater than or equal to 1; "
        "student.dropout = 2.0: Input should be less than 1"
    )
    several = ConfigError([Problem("a", 1, "is wrong", "mend it"), Problem("b", 2, "is wrong too")])
    assert reason_of(several) == "a = 1: is wrong → mend it; b = 2: is wrong too"
    assert reason_of(TrainingFailed("the loss is nan")) == "the loss is nan"


def test_values_that_break_a_rule_fail_the_trial_in_one_line(told: list[Mapping[str, Any]], tmp_path: Path) -> None:
    worker(Store(str(tmp_path)))({**CONFIG, "values": {"student.width": 30, "student.heads": 4}})
    assert told == [{"kind": "failed", "reason": "student: heads = 4 must divide width = 30"}]


@pytest.mark.parametrize("kind", [Store, Bucket])
def test_a_failed_trial_keeps_its_log_after_what_an_earlier_start_wrote(
    kind: type[Store], told: list[Mapping[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        logging.getLogger("src").info("it goes wrong")
        raise TrainingFailed("the loss is nan")

    monkeypatch.setattr(trainable, "train_stage", fails)
    store = kind(str(tmp_path))
    for folder in ("0", "data"):
        (tmp_path / folder).mkdir()
    store.write("0/trial.log", b"an earlier start\n")
    worker(store)(CONFIG)
    assert told == [{"kind": "failed", "reason": "the loss is nan"}]
    log = (store.read("0/trial.log") or b"").decode()
    assert log.startswith("an earlier start\n")
    assert log.endswith("INFO src: it goes wrong\n")


def test_a_worker_that_outlived_its_driver_writes_no_model(
    told: list[Mapping[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))

    class Trained:
        fit = type("Fit", (), {"best_metrics": {"ndcg_20": 0.5}, "epochs": 1, "best_epoch": 1, "seconds": 0.1})
        weights = "abc"

        def costs(self, names: set[str]) -> dict[str, float]:
            return {}

        def save(self, folder: Path) -> None:
            raise AssertionError("it must not come to this")

    def trains(*_: object) -> Trained:
        store.write(TOKEN, b"another driver's")
        return Trained()

    monkeypatch.setattr(trainable, "train_stage", trains)
    worker(store)(CONFIG)
    assert told == []
    assert not store.exists("0/model")


OTHERS_SAY_IT = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"


@pytest.mark.parametrize("error", [RuntimeError(OTHERS_SAY_IT), torch.AcceleratorError("CUDA error: out of memory")])
def test_out_of_memory_asks_for_a_larger_share_whoever_says_it(
    error: Exception, told: list[Mapping[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(trainable, "train_stage", fails)
    (tmp_path / "data").mkdir()
    worker(Store(str(tmp_path)))(CONFIG)
    assert told == [{"kind": "memory", "reason": f"out of GPU memory with a share of 0: {error}"}]


def test_an_error_of_the_program_is_not_taken_for_out_of_memory(
    told: list[Mapping[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(trainable, "train_stage", fails)
    (tmp_path / "data").mkdir()
    with pytest.raises(RuntimeError, match="mat1"):
        worker(Store(str(tmp_path)))(CONFIG)
