"""The file that holds the study: opened by one driver at a time, and never while it is damaged.

A partial last line is what a kill in the middle of a write leaves. Optuna reads over it, but the next record would be
glued to it and make the file unreadable for ever: it is cut off before the study is opened. Damage elsewhere is told.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from src.core.errors import ArtefactError, ConfigError
from src.core.logging import get_logger

_log = get_logger(__name__)

JOURNAL = "study.journal"
LOCK = "driver.lock"


@contextmanager
def single_driver(folder: Path) -> Iterator[None]:
    """Hold a result folder for this process; the kernel frees it however the process ends.

    Raises ``ConfigError`` when another driver holds it.
    """
    with (folder / LOCK).open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            rule = f"another search is running in it (process {handle.read().strip() or 'unknown'})"
            raise ConfigError.one("resume", str(folder), rule, "wait for it to end, or end it") from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def open_journal(folder: Path) -> JournalStorage:
    """The storage of a folder's studies, repaired; the caller holds `single_driver`.

    Raises ``ArtefactError`` when the file is damaged before its last line.
    """
    path = folder / JOURNAL
    if path.exists():
        repair(path)
        check(path)
    # a driver that was killed while it wrote leaves Optuna's own lock, which would block the first write for 30 s
    (folder / f"{JOURNAL}.lock").unlink(missing_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def repair(path: Path) -> int:
    """Cut an unfinished last line off, and say so; returns the number of bytes dropped."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    dropped = len(content) - whole
    if dropped:
        with path.open("r+b") as handle:
            handle.truncate(whole)
            handle.flush()
            os.fsync(handle.fileno())
        _log.warning(
            "%s: the last record was never finished (%d bytes dropped); all before it is intact", path, dropped
        )
    return dropped


def check(path: Path) -> int:
    """Count the records; raises ``ArtefactError`` that names the first damaged line and what is intact before it."""
    count = 0
    with path.open("rb") as handle:
        for count, line in enumerate(handle, start=1):
            try:
                known = "op_code" in json.loads(line)
            except (ValueError, TypeError):
                known = False
            if not known:
                total = count + sum(1 for _ in handle)
                rule = (
                    f"line {count} of {total} is damaged; the {count - 1} records before it are intact, as are the "
                    "trials' folders"
                )
                step = (
                    f"to go on from there: cp {path.name} damaged && head -n {count - 1} damaged > {path.name}, "
                    "in the result folder, then resume"
                )
                raise ArtefactError.one("study", str(path), rule, step)
    return count
