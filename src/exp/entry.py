"""How every entry point runs: settings, checks, a folder of its own, the work, one last line with the result's path."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Generic, TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from rich.markup import escape

from src.core.errors import TERMINATED, AnyoError, ConfigError, Paused, ProblemsFound
from src.core.logging import console, get_logger, log_to
from src.core.paths import MANIFEST, reserve_folder
from src.exp.door import RUN_DIR, config_place, expand_params, format_value, nested_plain, read_settings
from src.exp.help import show_help
from src.exp.resume import log_resume, read_resumed, remember_command, resume_argument
from src.pipeline.run_folder import SETTINGS_FILE, RunFolder

_log = get_logger(__name__)

S = TypeVar("S")
LOG = "run.log"
SETTINGS_HEADING = "everything this run was asked for, paths absolute"


@dataclass(frozen=True)
class Entry(Generic[S]):
    """An entry point: ``check`` looks for problems before a folder is made, ``run`` does the work and ends the folder.

    ``check`` returns whatever it prepared; ``run`` gets it back.
    """

    command: str
    config_name: str
    description: str
    schema: type[S]
    check: Callable[[S], Any]
    run: Callable[[S, Any, RunFolder], None]
    #: the keys that `resume=FOLDER` may change; empty where a run cannot be resumed
    resumable: frozenset[str] = frozenset()

    def main(self) -> None:
        """Run with ``sys.argv``; leaves with exit code 0, 1 (failed or paused while running), 2 (bad input),
        130 (Ctrl-C) or 143 (SIGTERM)."""
        sys.exit(self.execute(sys.argv[1:]))

    def execute(self, arguments: list[str]) -> int:
        """As `main`, for given arguments; returns the exit code."""
        if any(argument in ("--help", "-h") for argument in arguments):
            show_help(self.command, self.description, self.config_name, self.schema)
            return 0
        try:
            return self._execute(arguments)
        except ProblemsFound as error:
            _show_problems(error)
            return 2
        except Paused as error:
            console.print(f"paused: {escape(str(error))}")
            return error.exit_code
        except AnyoError as error:
            console.print(f"[bold red]error:[/] {escape(str(error))}")
            return 1
        except KeyboardInterrupt:
            console.print("interrupted")
            return 130

    def _execute(self, arguments: list[str]) -> int:
        log_to(None)
        wanted = resume_argument(arguments) if self.resumable else None
        if wanted is not None:
            return self._resume(wanted, arguments)
        self.call(arguments)
        return 0

    def call(self, arguments: list[str]) -> Path:
        """A new run from Python; returns its folder.

        Raises:
            AnyoError: whatever `execute` would show.
        """
        settings, folder_wanted = read_settings(self.config_name, arguments, self.schema)
        prepared = self.check(settings)
        folder = RunFolder(_own_folder(folder_wanted, arguments))
        log_to(folder.path / LOG)
        folder.write_yaml(SETTINGS_FILE, nested_plain(settings), SETTINGS_HEADING)
        if self.resumable:
            remember_command(folder.path, self.command, expand_params(arguments))
        self._work(arguments, settings, prepared, folder)
        return folder.path

    def _resume(self, wanted: Path, arguments: list[str]) -> int:
        resumed = read_resumed(wanted, self.command, self.config_name, self.schema, self.resumable, arguments)
        if (wanted / MANIFEST).exists() and not resumed.changes:
            _log.info("%s is finished: nothing is left to do (trials=N adds trials)", wanted)
            console.print(str(wanted), markup=False)
            return 0
        prepared = self.check(resumed.settings)
        log_to(wanted / LOG)
        log_resume(resumed)
        return self._work(resumed.arguments, resumed.settings, prepared, RunFolder(wanted))

    def _work(self, arguments: list[str], settings: S, prepared: Any, folder: RunFolder) -> int:
        before = signal.signal(signal.SIGTERM, _terminate) if self.resumable else None
        try:
            work = partial(self.run, settings, prepared, folder)
            failure = _under_hydra(self.config_name, arguments, folder.path, work)
        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)
        if failure is not None:
            _log.debug("".join(traceback.format_exception(failure)))
            if not any(folder.path.glob("*.json*")):
                _log.info("nothing was written to %s but its log", folder.path)
            if self.resumable and not isinstance(failure, ProblemsFound):
                step = f"python -m src.exp.{self.command} resume={folder.path}"
                console.print(f"to go on: {step}", markup=False)
            raise failure
        console.print(str(folder.path), markup=False)
        return 0


def _terminate(number: int, frame: FrameType | None) -> None:
    """SIGTERM while a stage is built: what is finished is in the cache."""
    raise Paused(TERMINATED)


def _own_folder(wanted: Path, arguments: list[str]) -> Path:
    """A new folder; one that the user named must be empty, the default gets a suffix when another run took it."""
    wanted = wanted.resolve()
    if not (any(argument.startswith(f"{RUN_DIR}=") for argument in arguments) and wanted.exists()):
        return reserve_folder(wanted)
    try:
        empty = not any(wanted.iterdir())
        if empty:
            # of two runs that name the same empty folder, only one can make this file
            (wanted / LOG).touch(exist_ok=False)
    except OSError as error:
        raise ConfigError.one(RUN_DIR, str(wanted), f"cannot be used ({error.strerror})", "name a new folder") from None
    if not empty:
        raise ConfigError.one(RUN_DIR, str(wanted), "is not empty", "name a new folder: results are kept")
    return wanted


def _under_hydra(
    config_name: str, arguments: list[str], folder: Path, work: Callable[[], None]
) -> BaseException | None:
    """Run ``work`` as a Hydra job in ``folder``, its working directory; returns the error that ended it, or None."""
    failure: list[BaseException] = []

    def job(config: DictConfig) -> None:
        try:
            work()
        except (AnyoError, KeyboardInterrupt) as error:
            # Hydra would print a traceback of its own; the entry shows the message instead
            failure.append(error)

    overrides = [a for a in expand_params(arguments) if not a.startswith(f"{RUN_DIR}=")]
    before, sys.argv = sys.argv, [sys.argv[0], *overrides, f"{RUN_DIR}={format_value(str(folder))}"]
    GlobalHydra.instance().clear()
    place, name = config_place(config_name)
    try:
        hydra.main(config_path=str(place), config_name=name, version_base="1.3")(job)()
    finally:
        sys.argv = before
    return failure[0] if failure else None


def _show_problems(error: ProblemsFound) -> None:
    count = len(error.problems)
    console.print(f"[bold red]{count} problem{'s' if count > 1 else ''}:[/]")
    for problem in error.problems:
        console.print(f"  • {problem}", markup=False)
