"""Finished stages, kept by the fingerprint of everything that determines them."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass as document

from src.core.checksums import checksum_files, verify_files
from src.core.data_utils import fingerprint
from src.core.documents import PARTIAL, conform, read_json_document
from src.core.errors import ArtefactError, ConfigError
from src.core.locks import alone
from src.core.logging import get_logger
from src.core.paths import atomic_folder, remove_entry, require_finished, write_json
from src.core.watching import training

_log = get_logger(__name__)

STAGE = "stage.json"

#: beside the stages' folders: locks of those that are being built, and what was found damaged
_LOCKS, _DAMAGED = "locks", "damaged"


@dataclass(frozen=True)
class StageRecord:
    """Where a stage's artefact lies, how long it took when it was built, and whether this run reused it."""

    name: str
    key: str
    folder: Path
    seconds: float
    reused: bool


def stage_key(kind: str, determined_by: Mapping[str, Any]) -> str:
    """Names the artefact of this kind that these facts decide."""
    return fingerprint(kind, determined_by)


@dataclass
class StageCache:
    """Builds a stage once for each key, also when several processes ask for it. ``records`` tells a run's story."""

    root: Path
    reuse: bool = True
    records: list[StageRecord] = field(default_factory=list)
    _verified: dict[Path, _Built] = field(default_factory=dict, repr=False)
    _builds: bool = field(default=True, repr=False)

    def stage(
        self, name: str, determined_by: Mapping[str, Any], build: Callable[[Path], None], kind: str = ""
    ) -> StageRecord:
        """The finished folder ``root/kind/key``, built where there is none.

        One process builds a key at a time; others wait and say so, and then find it built. A folder that is unfinished
        or damaged is told, set aside and built again.

        Args:
            name: what the run calls the stage.
            determined_by: everything that decides the content.
            build: fills the temporary folder that it is given.
            kind: names of one kind share their artefacts; the name itself by default.

        Raises:
            ConfigError: the cache cannot be written.
            ArtefactError: there is none, within `finished_only`.
        """
        kind = kind or name
        key = stage_key(kind, determined_by)
        folder = self.root / kind / key
        if (record := self._found(name, folder)) is not None:
            return self._remember(record)
        if not self._builds:
            raise ArtefactError.one("stage", name, f"lies in {self.root} neither finished nor whole, or is not reused")
        self.check()

        def waiting(holder: str) -> None:
            _log.info("%s: %s is building it; waiting until it is done", name, holder)

        with alone(self.root / _LOCKS / f"{kind}_{key}.lock", waiting) as locked:
            # another process may have built it while this one waited
            record = self._found(name, folder, set_aside=True)
            if record is None:
                if locked:
                    _sweep(folder)
                record = self._build(name, folder, determined_by, build)
        return self._remember(record)

    @contextmanager
    def finished_only(self) -> Iterator[None]:
        """A block in which stages are found, and none is built."""
        self._builds = False
        try:
            yield
        finally:
            self._builds = True

    def check(self) -> None:
        """Raises ``ConfigError`` when the cache cannot be written."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.root).close()
        except OSError as error:
            rule = f"cannot be written ({error.strerror})"
            raise ConfigError.one("runtime.cache", str(self.root), rule, "choose a writable folder") from None

    def _found(self, name: str, folder: Path, set_aside: bool = False) -> StageRecord | None:
        """What an earlier run, or another one, has built; what is damaged is no find, and is moved away if asked."""
        stage = self._read(name, folder, set_aside) if self.reuse else None
        if stage is None:
            return None
        _log.info("%s: reused (built in %.1f s)", name, stage.seconds)
        _log.debug("%s: its key is %s", name, folder.name)
        return StageRecord(name, folder.name, folder, stage.seconds, reused=True)

    def _read(self, name: str, folder: Path, set_aside: bool) -> _Built | None:
        """As `_finished`, verified once a run."""
        try:
            stage = self._verified.get(folder) or _finished(folder)
        except ArtefactError as error:
            if set_aside:
                self._set_aside(name, folder, error)
            return None
        if stage is not None:
            self._verified[folder] = stage
        return stage

    def _set_aside(self, name: str, folder: Path, why: ArtefactError) -> None:
        """Make place for a new build; of each key the last damaged folder is kept, for who wants to know."""
        kept = self.root / _DAMAGED / f"{folder.parent.name}_{folder.name}"
        remove_entry(kept)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # without locks another process may have done so
            os.replace(folder, kept)
        _log.warning("%s: %s; it is built again, and what was there is kept in %s until you remove it", name, why, kept)

    def _build(
        self, name: str, folder: Path, determined_by: Mapping[str, Any], build: Callable[[Path], None]
    ) -> StageRecord:
        _log.info("%s: building", name)
        _log.debug("%s: its key is %s", name, folder.name)
        start = time.perf_counter()
        with atomic_folder(folder, replace=not self.reuse) as target:
            with training(name):
                build(target)
            seconds = time.perf_counter() - start
            stage = {"seconds": seconds, "determined_by": _readable(determined_by), "files": checksum_files(target)}
            write_json(target / STAGE, {**stage, "checksum": _checksum(stage)})
        _log.info("%s: built in %.1f s", name, seconds)
        return StageRecord(name, folder.name, folder, seconds, reused=False)

    def _remember(self, record: StageRecord) -> StageRecord:
        self.records.append(record)
        return record


@document(frozen=True, config=PARTIAL)
class _Built:
    """What is read of `stage.json`."""

    seconds: float
    files: dict[str, str]
    checksum: str


def _finished(folder: Path) -> _Built | None:
    """What was written beside a finished artefact whose files are as they were written; None where there is none.

    Raises:
        ArtefactError: there is a folder, unfinished or damaged.
    """
    if not folder.exists():
        return None
    require_finished(folder)
    content = read_json_document(folder / STAGE)
    built = conform(content, _Built, folder / STAGE)
    if built.checksum != _checksum(content):
        raise ArtefactError.one("stage", str(folder / STAGE), "is damaged, or of an earlier version")
    verify_files(folder, built.files)
    return built


def _checksum(stage: Mapping[str, Any]) -> str:
    return fingerprint({name: value for name, value in stage.items() if name != "checksum"})


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed had begun to build; only for who holds the lock: nobody builds now."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(left, ignore_errors=True)


def _readable(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, (str, int, float, type(None))) else str(value)
        for name, value in values.items()
    }
