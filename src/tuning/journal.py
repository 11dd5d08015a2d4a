"""The file that holds the study: opened by one driver at a time, and never while it is damaged.

A partial last line is what a kill in the middle of a write leaves. Optuna reads over it, but the next record would be
glued to it and make the file unreadable for ever: it is cut off before the study is opened. Damage elsewhere is told.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from optuna.exceptions import OptunaError
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from src.core.documents import PARTIAL, conform
from src.core.errors import ArtefactError
from src.core.logging import get_logger
from src.core.result_files import JOURNAL
from src.pipeline.run_folder import journal_locks

_log = get_logger(__name__)


@dataclass(frozen=True, config=PARTIAL)
class _StudyFacts:
    """What a search notes about a study."""

    identity: str | None = None
    metrics: list[str] | None = None
    first_trials: list[dict[str, float | int | bool | str | None]] | None = None
    content: dict[str, str] | None = None


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="ignore"))
class _TrialFacts:
    """What a search notes about a trial; a failed one's metrics may be NaN."""

    epochs: int | None = None
    best_epoch: int | None = None
    seconds: float | None = None
    weights: str | None = None
    metrics: dict[str, float] | None = None
    failure: str | None = None
    note: str | None = None


def open_journal(folder: Path) -> JournalStorage:
    """The storage of a folder's studies, repaired; the caller holds `single_driver`.

    Raises ``ArtefactError`` when the file is damaged before its last line.
    """
    path = folder / JOURNAL
    if path.exists():
        repair(path)
        check(path)
    # a killed driver's lock would block the first write for 30 s
    for lock in journal_locks(folder):
        lock.unlink(missing_ok=True)
    return _sound(lambda: JournalStorage(JournalFileBackend(str(path))), path)


def read_journal(path: Path) -> JournalStorage:
    """The studies of a journal that is left as it is: nothing is repaired, and new records are refused.

    A last line that somebody may be writing is not read. Raises ``ArtefactError`` when the file is damaged before it.
    """
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    records = [_record(line) for line in whole.splitlines() if line.strip()]
    if None in records:
        number = records.index(None) + 1
        rule = f"record {number} of {len(records)} is damaged; those before it are intact"
        raise ArtefactError.one("study", str(path), rule)
    return _sound(lambda: JournalStorage(_Reading(records)), path)


class _Reading(BaseJournalBackend):
    """A journal that refuses new records."""

    def __init__(self, records: list[Any]) -> None:
        self._records = records

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Records from a number on."""
        return self._records[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Refused: who reads a journal changes nothing. Raises ``PermissionError``."""
        raise PermissionError(f"who reports only reads the journal; {len(logs)} record(s) refused")


def _sound(open_storage: Callable[[], JournalStorage], path: Path) -> JournalStorage:
    """The storage, once every study and trial in it has been found to be what this project writes."""
    try:
        storage = open_storage()
        for study in storage.get_all_studies():
            conform(study.study_name, str, path)
            conform(study.user_attrs, _StudyFacts, path)
            for trial in storage.get_all_trials(study._study_id, deepcopy=False):
                _check_trial(trial, len(storage.get_study_directions(study._study_id)))
                conform(trial.user_attrs, _TrialFacts, path)
    # Optuna's own replay of a record whose values were changed ends in any of these
    except (OptunaError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError) as error:
        rule = f"holds a record that Optuna cannot read ({type(error).__name__}: {error})"
        step = "the trials' folders are intact; start a new search with warm_start, or restore the file"
        raise ArtefactError.one("study", str(path), rule, step) from None
    return storage


def _check_trial(trial: FrozenTrial, objectives: int) -> None:
    """Raises ``ValueError`` or ``TypeError`` for a parameter outside its distribution, a value that is no number."""
    if trial.state.is_finished():
        trial._validate()  # a running one has no end yet
    for key, distribution in trial.distributions.items():
        if not distribution._contains(distribution.to_internal_repr(trial.params[key])):
            raise ValueError(f"{key} = {trial.params[key]!r} is outside {distribution}")
    values = trial.values or []
    if trial.state == TrialState.COMPLETE and len(values) != objectives:
        raise ValueError(f"trial {trial.number} has {len(values)} values for {objectives} objectives")
    numbers = [*values, *trial.intermediate_values.values()]
    if not all(isinstance(number, (int, float)) for number in numbers) or not all(map(math.isfinite, values)):
        raise ValueError(f"trial {trial.number} holds a value that is no finite number")
    if not all(isinstance(epoch, int) for epoch in trial.intermediate_values):
        raise TypeError(f"trial {trial.number} names an epoch that is no whole number")


def _record(line: bytes) -> dict[str, Any] | None:
    """A line of the journal as a record, None where it is none."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and "op_code" in content else None


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
            if _record(line) is None:
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
