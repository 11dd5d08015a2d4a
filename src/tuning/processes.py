"""Signals, and the processes that a killed driver left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil

from src.core.errors import HUNG_UP, INTERRUPTED, TERMINATED
from src.core.logging import get_logger
from src.core.paths import write_json

_log = get_logger(__name__)

_KEPT = "processes.json"


def remember_children(folder: Path, scratch: Path) -> None:
    """Note which processes this driver has started, and its scratch folder, for the start after a SIGKILL."""
    children = []
    for process in psutil.Process().children(recursive=True):
        try:
            children.append({"pid": process.pid, "started": process.create_time()})
        except psutil.Error:
            continue
    write_json(folder / _KEPT, {"scratch": str(scratch), "children": children})


def end_survivors(folder: Path) -> int:
    """End what an earlier driver of this folder left running, and remove its scratch; returns how many were ended.

    A process is known by its number and its start time together: numbers are used again.
    """
    path = folder / _KEPT
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        scratch, children = Path(noted["scratch"]), [(int(c["pid"]), float(c["started"])) for c in noted["children"]]
    except FileNotFoundError:
        return 0
    except (ValueError, KeyError, TypeError):
        _log.warning("%s is damaged: processes of the search that was killed are not looked for", path)
        return 0
    alive = [process for pid, started in children if (process := _same(pid, started)) is not None]
    for process in alive:
        try:
            process.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(alive, timeout=10)
    if alive:
        _log.info("ended %d processes that the interrupted search had left behind", len(alive))
    shutil.rmtree(scratch, ignore_errors=True)
    path.unlink(missing_ok=True)
    return len(alive)


def _same(pid: int, started: float) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        return process if abs(process.create_time() - started) < 1.0 and pid != os.getpid() else None
    except psutil.Error:
        return None


def forget_children(folder: Path) -> None:
    """Everything was ended in order."""
    (folder / _KEPT).unlink(missing_ok=True)


@contextmanager
def graceful_signals(on_signal: Callable[[str], None]) -> Iterator[None]:
    """SIGTERM, Ctrl-C and a closed terminal call ``on_signal`` with a reason; a second one raises
    ``KeyboardInterrupt`` at once. A terminal that is closed tells so more than once, and not under `nohup`."""
    seen: list[int] = []
    reasons = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        reasons[signal.SIGHUP] = HUNG_UP

    def handle(number: int, frame: FrameType | None) -> None:
        if seen and number != signal.SIGHUP:
            raise KeyboardInterrupt
        if not seen:
            seen.append(number)
            on_signal(reasons[signal.Signals(number)])

    before = {number: signal.signal(number, handle) for number in reasons}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
