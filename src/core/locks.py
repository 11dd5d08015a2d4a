"""One process at a time, by a lock that goes with its process, however that ends."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from src.core.logging import get_logger

_log = get_logger(__name__)


@contextmanager
def alone(path: Path, waiting: Callable[[str], None]) -> Iterator[bool]:
    """Hold the lock file ``path`` within this context; wait for it where another process (or thread) holds it.

    Args:
        path: made where it is missing, with its folder, and removed again.
        waiting: called with the holder ("process 12 on this-machine") before a wait begins.

    Yields:
        Whether the lock is held; not on a file system without locks, where nobody waits.
    """
    handle = _take(path, waiting)
    if handle is None:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        # closing is not enough: a process that was forked meanwhile would go on holding the lock
        fcntl.flock(handle, fcntl.LOCK_UN)
        handle.close()


def _take(path: Path, waiting: Callable[[str], None]) -> TextIO | None:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)  # each time: its holder may have removed the empty folder too
        handle = _open(path)
        try:
            if not _lock(handle, waiting):
                handle.close()
                return None
            if _lies_at(handle, path):
                handle.truncate(0)
                handle.write(f"process {os.getpid()} on {socket.gethostname()}")
                handle.flush()
                return handle
        except BaseException:
            handle.close()
            raise
        # its holder has removed the file since it was opened: who comes now locks another one
        handle.close()


def _open(path: Path) -> TextIO:
    """The lock file itself: what is written into it must not reach a file to which somebody has put a link there."""
    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644), "a+")
    except OSError:
        if not path.is_symlink():
            raise
        _log.warning("%s is a link, which no lock is: it is removed, and what it leads to is left alone", path)
        path.unlink(missing_ok=True)
        return _open(path)


def _lock(handle: TextIO, waiting: Callable[[str], None]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        waiting(handle.read() or "another process")
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        _log.debug("no lock on %s (%s)", handle.name, error)
        return False
    return True


def _lies_at(handle: TextIO, path: Path) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(handle.fileno()))
