"""How every entry point runs: settings, checks, a folder of its own, the work, one last line with the result's path."""

from __future__ import annotations

import gc
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, chdir, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import yaml
from rich.markup import escape

from src.cli.help import CFG, HelpRequest, help_request, show_help, show_keys
from src.cli.resume import go_on, log_resume, read_resumed, remember_command, resume_argument
from src.config.base_configs import LazyClass, description, loaded
from src.config.composition import RUN_DIR, groups
from src.config.hydra_job import run_as_job
from src.config.overrides import expand_params
from src.config.reading import read_config, read_settings
from src.config.replay import Origin
from src.core.errors import HUNG_UP, TERMINATED, AnyoError, ConfigError, Paused, ProblemsFound
from src.core.logging import console, get_logger, log_to, say_last
from src.core.paths import MANIFEST, disk_is_full, place_is_at_fault, reserve_folder
from src.core.result_files import RUN_LOG
from src.core.settings import nested_plain
from src.core.standard_streams import steady_standard_streams
from src.pipeline.run_folder import RunFolder
from src.pipeline.tracking import followed

if TYPE_CHECKING:
    from src.pipeline.settings import RuntimeSettings

_log = get_logger(__name__)

S = TypeVar("S")
P = TypeVar("P")


@dataclass(frozen=True)
class Work(Generic[S, P]):
    """What a command does: ``check`` looks for problems before a folder is made, ``run`` works and ends the folder.

    ``check`` returns whatever it prepared; ``run`` gets it back. ``check_resumed(folder, prepared)`` looks at what was
    begun in a folder, before anything is written there.
    """

    check: Callable[[S], P]
    run: Callable[[S, P, RunFolder], None]
    check_resumed: Callable[[Path, P], None] = lambda folder, prepared: None


def _collecting(work: Work[S, Any]) -> Work[S, Any]:
    """Collect garbage from here on, but not among what has been imported, which stays."""
    gc.freeze()
    gc.enable()
    return work


@dataclass(frozen=True)
class Entry(Generic[S]):
    """An entry point.

    ``schema`` and ``work`` import what the command computes with (torch, transformers, Ray, …), and only when the
    command line has turned out to be sound: help and a typo are answered without them.
    """

    command: str
    config_name: str
    description: str | None
    schema: type[S] | LazyClass[S]
    work: Callable[[], Work[S, Any]]
    #: the keys that `resume=FOLDER` may change; empty where a run cannot be resumed
    resumable: frozenset[str] = frozenset()
    #: arguments worth trying, each with what they do
    examples: Sequence[tuple[str, str]] = field(default=(), kw_only=True)

    def check(self, settings: S) -> Any:
        """See `Work`."""
        return self.work().check(settings)

    def run(self, settings: S, prepared: Any, folder: RunFolder) -> None:
        """See `Work`."""
        self.work().run(settings, prepared, folder)

    def check_resumed(self, folder: Path, prepared: Any) -> None:
        """See `Work`."""
        self.work().check_resumed(folder, prepared)

    def main(self) -> None:
        """Run with ``sys.argv``; leaves with exit code 0, 1 (failed or paused while running), 2 (bad input),
        129 (the terminal was closed), 130 (Ctrl-C) or 143 (SIGTERM)."""
        steady_standard_streams()
        gc.disable()  # what is imported stays: to look for garbage in it takes long
        sys.exit(replace(self, work=cache(lambda: _collecting(self.work()))).execute(sys.argv[1:]))

    def execute(self, arguments: list[str]) -> int:
        """As `main`, for given arguments; returns the exit code."""
        try:
            asked, rest = help_request(arguments)
            if asked is None:
                return self._execute(arguments)
            self._answer(asked, rest)
            return 0
        except ProblemsFound as error:
            show_problems(error)
            return 2
        except Paused as error:
            console.print(f"paused: {escape(str(error))}")
            return error.exit_code
        except AnyoError as error:
            console.print(f"[bold red]error:[/] {escape(str(error))}")
            return 1
        except OSError as error:
            if (told := _as_told(error, "")) is None:
                raise
            console.print(f"[bold red]error:[/] {escape(str(told))}")
            return 1
        except KeyboardInterrupt:
            console.print("interrupted")
            return 130

    def _answer(self, asked: HelpRequest, arguments: list[str]) -> None:
        content = read_config(self.config_name, arguments)
        if asked.option == CFG:
            console.print(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), markup=False, end="")
            return
        settings = description(self.config_name)["settings"]
        if asked.topic:
            show_keys(asked.topic, settings, content, groups(self.config_name).get(asked.topic, ()))
        else:
            show_help(self.command, self.description or "", self.examples, self.config_name, settings, content)

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
        # read once: what is checked is what runs, also where somebody changes the file meanwhile
        arguments = expand_params(arguments)
        settings, folder_wanted = read_settings(self.config_name, arguments, self.schema)
        prepared = self.check(settings)
        origin = Origin(arguments, Path.cwd())
        folder = RunFolder(_own_folder(folder_wanted, arguments), replay_keys=origin.replay_keys)
        log_to(folder.path / RUN_LOG)
        folder.write_settings(nested_plain(settings))
        if self.resumable:
            remember_command(folder.path, self.command, arguments)
        self._work(partial(run_as_job, self.config_name, arguments), settings, prepared, folder)
        return folder.path

    def _resume(self, wanted: Path, arguments: list[str]) -> int:
        resumed = read_resumed(wanted, self.command, self.config_name, loaded(self.schema), self.resumable, arguments)
        if (wanted / MANIFEST).exists() and not resumed.changes:
            _log.info("%s is finished: nothing is left to do (trials=N adds trials)", wanted)
            console.print(str(wanted), markup=False)
            return 0
        folder = RunFolder(wanted, replay_keys=resumed.origin.replay_keys)
        with folder.alone():  # before anything is written: another process may be at work here
            prepared = self.check(resumed.settings)
            self.check_resumed(wanted, prepared)
            log_to(wanted / RUN_LOG)
            log_resume(resumed)
            return self._work(_in_folder, resumed.settings, prepared, folder)

    def _run(self, settings: S, prepared: Any, folder: RunFolder) -> None:
        try:
            with self._followed(settings, folder):
                self.run(settings, prepared, folder)
        except OSError as error:
            if (told := _as_told(error, str(folder.path))) is None:
                raise
            raise told from error

    @staticmethod
    def _followed(settings: S, folder: RunFolder) -> AbstractContextManager[None]:
        """The trainings of a command that has any are watched."""
        runtime: RuntimeSettings | None = getattr(settings, "runtime", None)
        return nullcontext() if runtime is None else followed(runtime.tracking, folder.path)

    def _work(
        self,
        job: Callable[[Path, Callable[[], None]], BaseException | None],
        settings: S,
        prepared: Any,
        folder: RunFolder,
    ) -> int:
        """Run in the folder: ``job(folder, work)`` does the work there and returns the error that ended it, or None."""
        with _signals(bool(self.resumable)):
            failure = job(folder.path, partial(self._run, settings, prepared, folder))
        if failure is not None:
            _log.debug("".join(traceback.format_exception(failure)))
            if not any(folder.path.glob("*.json*")):
                _log.info("nothing was written to %s but its log", folder.path)
            if self.resumable and not isinstance(failure, ProblemsFound):
                console.print(f"to go on: {go_on(self.command, folder.path, settings)}", markup=False)
            raise failure
        say_last(str(folder.path))
        return 0


@dataclass(frozen=True)
class FolderlessEntry(Entry[S]):
    """A command that leaves no result folder: what it has to say it prints, or writes where its settings name."""

    def _execute(self, arguments: list[str]) -> int:
        log_to(None)
        settings, _ = read_settings(self.config_name, expand_params(arguments), self.schema)
        # the working directory stands in for a result folder; nothing is written there
        self.run(settings, self.check(settings), RunFolder(Path.cwd()))
        return 0


def _as_told(error: OSError, place: str) -> AnyoError | None:
    """An error about this machine's files in this project's words; None for a defect.

    Args:
        error: of the system.
        place: what was being written to, for an error that names nothing.
    """
    if disk_is_full(error):
        return AnyoError(f"the disk is full ({error.filename or place}): make room")
    if place_is_at_fault(error):
        return AnyoError(f"{error.filename} cannot be used ({error.strerror}): mend that, or move it")
    return None


@contextmanager
def _signals(resumable: bool) -> Iterator[None]:
    """What SIGTERM and a closed terminal do to a run: a search pauses, other runs go on without a terminal.

    A search that builds a stage has what is finished in the cache. Under `nohup` a closed terminal does nothing.
    """
    reasons = {signal.SIGTERM: TERMINATED, signal.SIGHUP: HUNG_UP}

    def pause(number: int, frame: FrameType | None) -> None:
        raise Paused(reasons[signal.Signals(number)])

    handlers: dict[signal.Signals, Any] = {signal.SIGTERM: pause} if resumable else {}
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        handlers[signal.SIGHUP] = pause if resumable else signal.SIG_IGN
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _own_folder(wanted: Path, arguments: list[str]) -> Path:
    """A new folder; one that the user named must be empty, the default gets a suffix when another run took it."""
    wanted = wanted.resolve()
    if not (any(argument.startswith(f"{RUN_DIR}=") for argument in arguments) and wanted.exists()):
        return reserve_folder(wanted)
    try:
        empty = not any(wanted.iterdir())
        if empty:
            # of two runs that name the same empty folder, only one can make this file
            (wanted / RUN_LOG).touch(exist_ok=False)
    except OSError as error:
        raise ConfigError.one(RUN_DIR, str(wanted), f"cannot be used ({error.strerror})", "name a new folder") from None
    if not empty:
        raise ConfigError.one(RUN_DIR, str(wanted), "is not empty", "name a new folder: results are kept")
    return wanted


def _in_folder(folder: Path, work: Callable[[], None]) -> BaseException | None:
    """As `run_as_job` for a folder that has its record already, from which nothing is composed."""
    try:
        with chdir(folder):
            work()
    except (AnyoError, KeyboardInterrupt) as error:
        return error
    return None


def show_problems(error: ProblemsFound) -> None:
    """Print every problem, a line each."""
    count = len(error.problems)
    console.print(f"[bold red]{count} problem{'s' if count > 1 else ''}:[/]")
    for problem in error.problems:
        console.print(f"  • {problem}", markup=False)
