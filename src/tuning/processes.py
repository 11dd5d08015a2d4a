"""Signals, and what a killed driver left behind: its processes and its scratch folder.

The note about them lies in the result folder, which may have come from somebody else, or be a copy of one in which a
search is at work. So nothing is ended or removed on its word alone: it must have been written in this very folder, the
scratch folder must be one that this program made for it, and a process must be seen to work in it.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil
from pydantic.dataclasses import dataclass

from src.core.documents import PARTIAL, read_mapping
from src.core.errors import HUNG_UP, INTERRUPTED, TERMINATED, ArtefactError
from src.core.logging import get_logger
from src.core.paths import write_json, write_text

_log = get_logger(__name__)

_KEPT = "processes.json"
#: in a scratch folder: the word that the note in the result folder must know
_MARKER = ".anyo-search"
_NAME = re.compile(r"anyo-[A-Za-z0-9_]+")


@dataclass(frozen=True, config=PARTIAL)
class _Child:
    """A process by its number and its start: numbers are used again."""

    pid: int
    started: float


@dataclass(frozen=True, config=PARTIAL)
class _Note:
    """What a driver has running, and where; ``folder`` is the result folder that the note was written in."""

    scratch: str
    mark: str
    children: list[_Child]
    folder: str = ""


def remember_children(folder: Path, scratch: Path) -> None:
    """Note which processes this driver has started, and its scratch folder, for the start after a SIGKILL.

    The scratch folder gets a mark, once, by which `end_survivors` knows it again.
    """
    if scratch.is_dir() and not (scratch / _MARKER).exists():
        write_text(scratch / _MARKER, secrets.token_hex(16))
    children = []
    for process in psutil.Process().children(recursive=True):
        try:
            children.append({"pid": process.pid, "started": process.create_time()})
        except psutil.Error:
            continue
    told = {"scratch": str(scratch), "mark": _mark_of(scratch), "folder": _identity(folder), "children": children}
    write_json(folder / _KEPT, told)


def end_survivors(folder: Path) -> int:
    """End what an earlier driver of this folder left running, and remove its scratch; returns how many were ended.

    Where the note in the folder is damaged, was written in another folder, or names a scratch folder that was not made
    for this search, nothing is ended and nothing removed.
    """
    path = folder / _KEPT
    if not path.exists():
        return 0
    try:
        note = read_mapping(path, _Note)
    except ArtefactError:
        _log.warning("%s is damaged: processes of the search that was killed are not looked for", path)
        return 0
    scratch = Path(note.scratch)
    if not scratch.exists():
        path.unlink(missing_ok=True)
        return 0
    # a disk may have another number since the machine was started anew, but then nothing of the note lives
    if note.folder != _identity(folder) and any(_works_in(child, scratch) for child in note.children):
        _log.warning(
            "%s was written in another folder, of which this one is a copy: its processes are left alone", path
        )
        path.unlink(missing_ok=True)
        return 0
    if not _is_own(scratch, note.mark):
        _log.warning("%s names %s, which no search of this folder made: it is left alone", path, scratch)
        return 0
    alive = [process for child in note.children if (process := _works_in(child, scratch)) is not None]
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


def _identity(folder: Path) -> str:
    """Which folder it is: the same wherever it is moved to on its disk, and another one for a copy."""
    found = folder.stat()
    return f"{found.st_dev}:{found.st_ino}"


def _mark_of(scratch: Path) -> str:
    try:
        return (scratch / _MARKER).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _is_own(scratch: Path, mark: str) -> bool:
    """Whether a search has made this folder, for this user, where temporary files lie, and it was the note's search."""
    try:
        found = scratch.lstat()
    except OSError:
        return False
    named = (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm", os.environ.get("XDG_RUNTIME_DIR"))
    places = {Path(place).resolve() for place in named if place}
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.getuid()
        and _NAME.fullmatch(scratch.name) is not None
        and scratch.parent.resolve() in places
        and mark != ""
        and secrets.compare_digest(_mark_of(scratch).encode(), mark.encode())
    )


def _works_in(child: _Child, scratch: Path) -> psutil.Process | None:
    """The process, where it is still that one and this user's, and its command line or a file lies in ``scratch``."""
    try:
        process = psutil.Process(child.pid)
        if abs(process.create_time() - child.started) >= 1.0 or child.pid == os.getpid():
            return None
        if process.uids().real != os.getuid():
            return None
        inside = f"{scratch}{os.sep}"
        seen = [*process.cmdline(), process.cwd() + os.sep, *(file.path for file in process.open_files())]
    except psutil.Error:
        return None
    return process if any(inside in word for word in seen) else None


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
