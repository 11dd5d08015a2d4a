"""One log file a run, one short screen: the file gets everything, the terminal what a person wants to see."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from src.core.standard_streams import lost_because


def is_terminal() -> bool:
    """Whether somebody can watch a bar move: False for a pipe, a file, and a standard output that is closed."""
    return sys.stdout is not None and not sys.stdout.closed and sys.stdout.isatty()


#: Everything meant for a person goes through this console, so that bars and lines do not tear each other.
#: It writes to `sys.stdout` as that is when it writes (see `src.core.standard_streams`).
#: emoji: `:factory:` is part of a text.
console = Console(highlight=False, soft_wrap=True, emoji=False, width=None if is_terminal() else 120)

_NOISY = (
    "httpx", "urllib3", "filelock", "fsspec", "transformers", "torch", "ray", "optuna", "alembic", "tensorboard",
    "mlflow", "wandb", "matplotlib",
)  # fmt: skip


#: the time of a line on the screen
_TIME = "%H:%M:%S"


class _Lines(logging.Handler):
    """A message a line, of any length: what is no terminal is searched and cut by other programs."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record on the console."""
        said = time.strftime(_TIME, time.localtime(record.created))
        console.print(f"{said} {record.getMessage()}", markup=False, soft_wrap=True)


def get_logger(name: str) -> logging.Logger:
    """The logger of a module (pass ``__name__``)."""
    return logging.getLogger(name)


def log_to(path: Path | None, level: int = logging.INFO) -> None:
    """Send INFO and above to the terminal and, when ``path`` is given, DEBUG and above of `src` to that file."""
    # a full disk is told once by whoever cannot write its results, not with a traceback for every line of the log
    logging.raiseExceptions = False
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    screen: logging.Handler = _Lines()
    if is_terminal():
        screen = RichHandler(console=console, show_path=False, show_level=False, log_time_format=_TIME, markup=False)
    screen.setLevel(level)
    # libraries' warnings are for the log file
    screen.addFilter(lambda record: record.name != "py.warnings")
    logging.captureWarnings(capture=True)
    root.addHandler(screen)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        file_handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        file_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(file_handler)
    root.setLevel(logging.INFO)
    logging.getLogger("src").setLevel(logging.DEBUG if path else level)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


def say_last(text: str) -> None:
    """Print a command's last line, on stderr where standard output has lost its reader."""
    console.print(text, markup=False)
    if sys.stdout is not None and (reason := lost_because(sys.stdout)) is not None:
        get_logger(__name__).warning("nothing could be written to standard output any more (%s)", reason)
        if sys.stderr is not None:
            sys.stderr.write(f"{text}\n")


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Progress]:
    """A bar on the terminal for long work; advance its only task with ``bar.advance(bar.task_ids[0])``.

    Where the output is no terminal (a log, CI) nothing is drawn.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not is_terminal()) as bar:
        bar.add_task(description, total=total, note="")
        yield bar


@contextmanager
def epoch_bar(description: str, epochs: int, monitor: str) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A bar over epochs; yields the `Report` that moves it and shows the monitored metric.

    Args:
        description: what stands before the bar.
        epochs: how many there are at most.
        monitor: the metric that stands behind it.
    """
    with progress_bar(description, epochs) as bar:

        def report(epoch: int, metrics: Mapping[str, float]) -> None:
            bar.update(bar.task_ids[0], completed=epoch, note=f"{monitor} {metrics[monitor]:.4f}")

        yield report
