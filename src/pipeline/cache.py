"""Finished stages, kept by the fingerprint of everything that determines them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass as document

from src.core.data_utils import fingerprint
from src.core.documents import PARTIAL, read_mapping
from src.core.errors import ArtefactError, ConfigError
from src.core.logging import get_logger
from src.core.paths import MANIFEST, atomic_folder, require_finished, write_json

_log = get_logger(__name__)

STAGE = "stage.json"


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
    """Builds a stage once for each key. ``records`` tells a run's story in order."""

    root: Path
    reuse: bool = True
    records: list[StageRecord] = field(default_factory=list)

    def stage(
        self, name: str, determined_by: Mapping[str, Any], build: Callable[[Path], None], kind: str = ""
    ) -> StageRecord:
        """The finished folder ``root/kind/key``; ``build(folder)`` fills a temporary one when there is none.

        ``determined_by`` must hold everything that decides the content. ``name`` is what the run calls the stage; two
        names of one ``kind`` (the name itself by default) share their artefacts. A folder that is unfinished or damaged
        is built again. Raises ``ConfigError`` when the cache cannot be written.
        """
        kind = kind or name
        key = stage_key(kind, determined_by)
        folder = self.root / kind / key
        found = _finished(folder) if self.reuse else None
        if found is not None:
            _log.info("%s: reused %s (built in %.1f s)", name, key, found.seconds)
            return self._remember(StageRecord(name, key, folder, found.seconds, reused=True))
        _log.info("%s: building %s", name, key)
        seconds = self._build(folder, determined_by, build)
        _log.info("%s: built in %.1f s", name, seconds)
        return self._remember(StageRecord(name, key, folder, seconds, reused=False))

    def check(self) -> None:
        """Raises ``ConfigError`` when the cache cannot be written."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.root).close()
        except OSError as error:
            rule = f"cannot be written ({error.strerror})"
            raise ConfigError.one("runtime.cache", str(self.root), rule, "choose a writable folder") from None

    def _build(self, folder: Path, determined_by: Mapping[str, Any], build: Callable[[Path], None]) -> float:
        start = time.perf_counter()
        self.check()
        with atomic_folder(folder) as target:
            build(target)
            seconds = time.perf_counter() - start
            write_json(target / STAGE, {"seconds": seconds, "determined_by": _readable(determined_by)})
        return seconds

    def _remember(self, record: StageRecord) -> StageRecord:
        self.records.append(record)
        return record


@document(frozen=True, config=PARTIAL)
class _Built:
    """What is read of `stage.json`."""

    seconds: float


def _finished(folder: Path) -> _Built | None:
    """What was written beside a finished artefact, or None where it has to be built."""
    if not folder.exists():
        return None
    try:
        require_finished(folder)
        return read_mapping(folder / STAGE, _Built)
    except ArtefactError as error:
        _log.warning("%s is not usable and will be built again: %s", folder / MANIFEST, error)
        return None


def _readable(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, (str, int, float, type(None))) else str(value)
        for name, value in values.items()
    }
