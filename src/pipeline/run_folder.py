"""What a run leaves in `result/result_<timestamp>/`.

The manifest is written last: a folder without one is unfinished.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic.dataclasses import dataclass as document

from src.core.documents import PARTIAL, read_document, read_json_lines
from src.core.errors import ConfigError
from src.core.git_info import git_info
from src.core.paths import MANIFEST, atomic_folder, write_json, write_text
from src.core.result_files import (
    BEST_PARAMS,
    DRIVER_LOCK,
    EARLIER_MANIFEST,
    JOURNAL,
    RESUMES,
    SETTINGS_FILE,
    TEST_OPENINGS,
    TIME,
    metrics_file,
)
from src.core.timing import Stopwatch

if TYPE_CHECKING:
    from src.pipeline.cache import StageRecord
    from src.pipeline.settings import ExperimentSettings

#: names in `metrics/time.json` that are always there (mission, "Evaluation and time")
TIMES = (
    "teacher_train_time_total",
    "distill_teacher_export_time",
    "student_baseline_train_time",
    "distill_student_train_time",
)


@contextmanager
def single_driver(folder: Path) -> Iterator[None]:
    """Hold a result folder for this process; the kernel frees it however the process ends.

    Raises ``ConfigError`` when another driver holds it, or when nothing can be written there.
    """
    path = folder / DRIVER_LOCK
    while True:
        try:
            # a link that somebody put there must not lead to a file that is then written over
            handle = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+")
        except OSError as error:
            rule = f"cannot be written ({error.strerror})"
            raise ConfigError.one("resume", str(folder), rule, "make the folder writable") from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                handle.seek(0)
                rule = f"another search is running in it (process {handle.read().strip() or 'unknown'})"
                raise ConfigError.one("resume", str(folder), rule, "wait for it to end, or end it") from None
            if not _is_open_file(path, handle.fileno()):
                continue  # the driver before removed its lock while this one was opening it
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def journal_locks(folder: Path) -> list[Path]:
    """Optuna's own locks of a folder's journal: links that a driver leaves when it is killed while it writes a record.

    A lock that was being released has a random name before its ending. Removing one removes a name, never a target.
    """
    return [path for path in folder.glob(f"{JOURNAL}.lock*") if path.is_symlink() or path.is_file()]


def _is_open_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@document(frozen=True, config=PARTIAL)
class _Resume:
    """When a search went on, and what was changed."""

    time: str
    changes: list[str]


def previous_resumes(folder: Path) -> list[dict[str, Any]]:
    """When and with what changes a search went on; raises ``ArtefactError`` for a damaged record."""
    step = "remove the line, or the file: it is a record, which nothing depends on"
    return [asdict(line) for line in read_json_lines(folder / RESUMES, _Resume, step)]


def replay_command(path: Path) -> str | None:
    """The command that the heading of `best_params.yaml` names; raises ``ArtefactError`` for a file that is no text."""
    lines = (line.removeprefix("#").strip() for line in read_document(path).splitlines() if line.startswith("#"))
    return next((line for line in lines if line.startswith("python ")), None)


def _no_command(settings: ExperimentSettings) -> Mapping[str, Any]:
    raise NotImplementedError("this run was not started by a command: there is none to repeat it with")


@dataclass
class RunFolder:
    """One run's folder and its clock.

    ``replay_keys`` turns an experiment's settings into the keys from which a command repeats it: what was started knows
    which options these settings began with.
    """

    path: Path
    replay_keys: Callable[[ExperimentSettings], Mapping[str, Any]] = field(default=_no_command, repr=False)
    started: float = field(default_factory=time.time)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    _held: bool = field(default=False, repr=False)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder for this process (see `single_driver`); a block within such a block changes nothing."""
        if self._held:
            yield
            return
        with single_driver(self.path):
            self._held = True
            try:
                yield
            finally:
                self._held = False

    @property
    def test_record(self) -> Path:
        """The file in which each opening of the test split is logged."""
        return self.path / TEST_OPENINGS

    def write_metrics(self, name: str, metrics: Mapping[str, Any]) -> None:
        """Write `metrics/<name>.json`."""
        write_json(metrics_file(self.path, name), dict(metrics))

    def write_yaml(self, name: str, content: Any, heading: str = "") -> None:
        """Write a YAML file.

        Args:
            name: of the file, within the folder.
            content: plain data.
            heading: a comment above it.
        """
        comment = "".join(f"# {line}\n" for line in heading.splitlines())
        write_text(self.path / name, comment + yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def write_settings(self, content: Mapping[str, Any]) -> None:
        """`settings.yaml`, from nested plain data."""
        self.write_yaml(SETTINGS_FILE, dict(content), "everything this run was asked for, paths absolute")

    def write_best_params(self, settings: ExperimentSettings, command: str) -> None:
        """`best_params.yaml`: the shortest list of keys from which ``command`` repeats these settings."""
        line = f"python -m src.exp.{command} params={self.path}/{BEST_PARAMS}"
        keys = dict(self.replay_keys(settings))
        self.write_yaml(BEST_PARAMS, keys, f"Replay from the repository's root:\n  {line}")

    def copy_folder(self, source: Path, name: str) -> None:
        """Copy an artefact folder into the result, in place of an earlier one."""
        with atomic_folder(self.path / name) as target:
            shutil.copytree(source, target, dirs_exist_ok=True)

    def begin_again(self) -> None:
        """Make a finished folder an unfinished one: its manifest is set aside until the run has ended again."""
        if (self.path / MANIFEST).exists():
            os.replace(self.path / MANIFEST, self.path / EARLIER_MANIFEST)

    def record_stage_times(self, records: Sequence[StageRecord]) -> None:
        """Add the seconds that each stage took when it was built, also where this run reused it."""
        names = {
            "student_baseline": "student_baseline_train_time",
            "teacher": "teacher_train_time_total",
            "teacher_outputs": "distill_teacher_export_time",
        }
        for record in records:
            if record.name in names:
                self.stopwatch.add(names[record.name], record.seconds)

    def finish(
        self,
        kind: str,
        seed: int,
        fingerprints: Mapping[str, str],
        extra: Mapping[str, Any],
        last: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        """Write `metrics/time.json` and then, last and atomically, the manifest: without one a folder is unfinished.

        Args:
            kind: the command, as the manifest names it.
            seed: of the run.
            fingerprints: of data and stages, by name.
            extra: what else the manifest says.
            last: is given the manifest before it is written.
        """
        from src.core.hardware import command_line, hardware, package_versions  # torch is not needed to begin a run

        times = {name: self.stopwatch.seconds.get(name, 0.0) for name in TIMES}
        self.write_metrics(TIME, {**times, **self.stopwatch.seconds, "wall_time": time.time() - self.started})
        manifest = {
            "kind": kind,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.started)),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": command_line(),
            "git": git_info(),
            "versions": package_versions(),
            "hardware": hardware(),
            "seed": seed,
            "fingerprints": dict(fingerprints),
            **extra,
        }
        if last is not None:
            last(manifest)
        write_json(self.path / MANIFEST, manifest)
