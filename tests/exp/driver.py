"""The real driver in a process of its own, to be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna

from src.core.paths import REPOSITORY
from src.tuning.journal import JOURNAL

#: one trial at a time, so that the uninterrupted search can be compared with
ONE_AT_A_TIME = f"tuning.cpu_per_trial={float(os.cpu_count() or 1)}"
SMALL = [
    "dataset.sample_users=60", "dataset.sample_items=60", "dataset.sample_interactions=1500", "student.width=16",
    "student.loop.epochs=4", "tuning.pruner_startup_trials=2", "tuning.pruner_warmup_epochs=1",
    "tuning.startup_trials=2",
]  # fmt: skip


def start(folder: Path, *arguments: str, command: str = "tune_student") -> subprocess.Popen[str]:
    """A driver in ``folder``, in a process group of its own; its output goes to `out.txt` there."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", f"src.exp.{command}", *arguments]
    with (folder / "out.txt").open("a") as out:
        return subprocess.Popen(line, cwd=folder, env=environment, stdout=out, stderr=out, text=True)


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 180) -> bool:
    """Whether a condition came true before the process ended; polls, because the journal is only a file."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        if process.poll() is not None:
            return holds()
        time.sleep(0.02)
    raise AssertionError("timed out")


def records(folder: Path) -> int:
    """Lines of a result folder's journal."""
    path = folder / JOURNAL
    return path.read_bytes().count(b"\n") if path.exists() else 0


def end(process: subprocess.Popen[str], number: signal.Signals) -> int:
    """Send a signal to the driver alone and wait for its end."""
    process.send_signal(number)
    return process.wait(timeout=120)


def trial_table(folder: Path) -> list[tuple[Any, ...]]:
    """The trials of a result folder's only search, without times."""
    backend = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
    study = optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(backend))
    return [
        (t.number, t.state.name, t.values, t.params, t.intermediate_values, t.user_attrs.get("weights"))
        for t in study.get_trials(deepcopy=False)
    ]


def trained_epochs(folder: Path) -> list[tuple[str, str]]:
    """(trial, epoch) of every epoch that any worker has trained, from the trials' logs."""
    found = []
    for log in sorted((folder / "trials").glob("*/trial.log")):
        for line in log.read_text(encoding="utf-8").splitlines():
            if "src.core.training: epoch " in line:
                found.append((log.parent.name, line.split("epoch ", 1)[1].split(":", 1)[0]))
    return found
