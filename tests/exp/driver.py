"""The real driver in a process of its own, to be killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna

from src.core.paths import REPOSITORY
from src.core.result_files import JOURNAL

#: one trial at a time, so that the uninterrupted search can be compared with: more than half of the cores, and not all,
#: since a small student with a thread on every core waits for the slowest one wherever anything else runs
ONE_AT_A_TIME = f"tuning.cpu_per_trial={(os.cpu_count() or 1) / 2 + 0.5}"
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


#: seconds after which something hangs; a busy machine takes many times as long as an idle one
PATIENCE = 900.0


def finish(folder: Path, *arguments: str, command: str = "tune_student") -> int:
    """Run a driver in ``folder`` to its end; returns its exit code."""
    return start(folder, *arguments, command=command).wait(timeout=PATIENCE)


def stopped(found: Path, at: int, trials: int, *arguments: str) -> subprocess.Popen[str]:
    """A driver that is held (SIGSTOP) in the middle of its search: of one that it begins, or goes on with.

    Args:
        found: Where it writes its result, or the result that is there.
        at: The lines of its journal from which on it is in the middle.
        trials: How many trials it makes in all.
        arguments: Of the command, without these two; none to go on.

    It is started anew where it came to its end before this process was given time to look.
    """
    before = shutil.copytree(found, found.with_name("before")) if found.exists() else None
    place = f"hydra.run.dir={found}" if before is None else f"resume={found}"
    for _ in range(5):
        process = start(found.parent, *arguments, f"trials={trials}", place)
        while process.poll() is None and records(found) < at:
            time.sleep(0.02)
        process.send_signal(signal.SIGSTOP)  # what follows meets it here, however late
        ended = [row for row in trial_table(found) if row[1] != "RUNNING"]
        if len(ended) < trials and process.poll() is None:
            return process
        assert end(process, signal.SIGCONT) == 0, (found.parent / "out.txt").read_text()
        shutil.rmtree(found)
        if before is not None:
            shutil.copytree(before, found)
    raise AssertionError("the search was over too soon, five times")


def records(folder: Path) -> int:
    """Lines of a result folder's journal."""
    path = folder / JOURNAL
    return path.read_bytes().count(b"\n") if path.exists() else 0


def end(process: subprocess.Popen[str], number: signal.Signals) -> int:
    """Send a signal to the driver alone, which may be stopped, and wait for its end."""
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    return process.wait(timeout=PATIENCE)


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
