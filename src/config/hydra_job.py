"""A run as one of Hydra's jobs: in its folder, with Hydra's own record of what was composed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from src.config.composition import RUN_DIR, config_place, opened
from src.config.overrides import format_value
from src.core.errors import AnyoError


def run_as_job(
    config_name: str, arguments: Sequence[str], folder: Path, work: Callable[[], None]
) -> BaseException | None:
    """Run ``work`` in ``folder``, its working directory; Hydra's record goes there, too.

    Args:
        config_name: a config in `conf/`.
        arguments: those that `read_settings` has checked, word for word: none of them says anything to Hydra itself but
            where the folder is.
        folder: the run's folder.
        work: what is to be done.

    Returns:
        The error that ended the work, or None.
    """
    failure: list[BaseException] = []

    def job(config: DictConfig) -> None:
        try:
            work()
        except (AnyoError, KeyboardInterrupt) as error:
            # Hydra would print a traceback of its own; the command shows the message instead
            failure.append(error)

    overrides = [opened(argument) for argument in arguments if not argument.startswith(f"{RUN_DIR}=")]
    before, sys.argv = sys.argv, [sys.argv[0], *overrides, f"{RUN_DIR}={format_value(str(folder))}"]
    GlobalHydra.instance().clear()
    place, name = config_place(config_name)
    try:
        hydra.main(config_path=str(place), config_name=name, version_base="1.3")(job)()
    finally:
        sys.argv = before
    return failure[0] if failure else None
