"""A search without Ray that can be killed at any journal record, and what it leaves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from optuna.storages.journal import JournalFileBackend

from src.pipeline.run_folder import single_driver
from src.tuning import journal
from src.tuning.dispatch import CHECKPOINT, Dispatcher, Job, Search
from src.tuning.search_space import CategoricalParameter, FloatParameter, SearchSpace
from src.tuning.settings import TuningSettings
from src.tuning.store import Store
from src.tuning.study import Record

SPACE = SearchSpace(
    "distill",
    {"ndcg_20": "maximize"},
    {
        "distill.lam": FloatParameter(type="float", low=0.0, high=1.0),
        "active.policy": CategoricalParameter(type="categorical", choices=["all", "kl_divergence"]),
        "active.kl_threshold": FloatParameter(type="float", low=0.1, high=1.0, when={"active.policy": "kl_divergence"}),
    },
)
TRIALS, EPOCHS = 8, 4
#: how far apart the records are at which a test kills; an odd number, since every second kill leaves half a record
EVERY = [pytest.param(3, id="every third record"), pytest.param(1, marks=pytest.mark.nightly, id="every record")]


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program may catch it."""


class DyingBackend(JournalFileBackend):
    """Dies once, at the record with number ``at``: when it is written, or with half of it written."""

    at, partial, written = 0, False, 0

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """As Optuna's, until the end."""
        for log in logs:
            DyingBackend.written += 1
            if DyingBackend.written != DyingBackend.at:
                super().append_logs([log])
                continue
            if DyingBackend.partial:
                line = json.dumps(log, separators=(",", ":")).encode()
                with open(self._file_path, "ab") as handle:
                    handle.write(line[: len(line) // 2])
            else:
                super().append_logs([log])
            raise Killed


@dataclass
class Toy:
    """A search over a function of the parameters that gets better with each epoch."""

    folder: Path
    tuning: TuningSettings
    trained: list[tuple[int, int]] = field(default_factory=list)
    space: SearchSpace = SPACE
    seed: int = 7

    def run(self, trials: int = TRIALS) -> Record:
        """Start, or go on, as the real driver does."""
        self.folder.mkdir(exist_ok=True)
        with single_driver(self.folder):
            storage = journal.open_journal(self.folder)
            grid = self.space.grid() if self.tuning.sampler == "grid" else [{"distill.lam": 0.0}]
            record = Record.open(storage, "search", self.space, self.tuning, self.seed, EPOCHS, "identity", grid, 1)
            search = Search(record, trials, keep=2)
            dispatcher = Dispatcher([search], Store(str(self.folder / "trials")), retries=1)
            while (job := dispatcher.next()) is not None:
                self._work(dispatcher, job)
        return record

    def _work(self, dispatcher: Dispatcher, job: Job) -> None:
        """What a worker does: the checkpoint first, the report second; a resumed one reports its epochs again."""
        store, name = dispatcher.store, f"{job.folder}/{CHECKPOINT}"
        done = int(store.read(name) or b"0")
        for epoch in range(1, EPOCHS + 1):
            if epoch > done:
                self.trained.append((job.number, epoch))
                store.write(name, str(epoch).encode())
            report = {"kind": "epoch", "epoch": epoch, "objective": value(job.values, epoch)}
            if dispatcher.on_report(job.start, report):
                dispatcher.on_end(job.start)
                return
        attributes = {"epochs": EPOCHS, "weights": f"{value(job.values, EPOCHS)}"}
        best = value(job.values, EPOCHS)
        dispatcher.on_report(job.start, {"kind": "done", "values": [best], "attributes": attributes})
        dispatcher.on_end(job.start)


def value(params: Mapping[str, Any], epoch: int) -> float:
    """Deterministic; half of the configurations start well and end badly."""
    lam = float(params["distill.lam"])
    bonus = float(params.get("active.kl_threshold", 0.3))
    return lam * (1 - lam) + 0.1 * bonus + (0.02 if lam < 0.5 else -0.03) * epoch


def table(record: Record) -> list[tuple[Any, ...]]:
    """The trials without their times."""
    return [
        (
            trial.number, trial.state.name, trial.values, trial.params, trial.intermediate_values, trial.user_attrs,
            trial.system_attrs,
        )
        for trial in record.trials()
    ]  # fmt: skip
