"""`best_params.yaml`: the shortest list of keys from which `run_distill` repeats a trial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from src.config.reading import CONF, compose_plain, groups, nested_plain, to_settings

if TYPE_CHECKING:
    from src.pipeline.settings import ExperimentSettings

#: which command trains the winner of each stage once more
REPLAY_WITH = {"distill": "run_distill", "student": "run_student_baseline", "teacher": "run_teacher"}
REPLAY_HEADING = "Replay from the repository's root:\n  python -m src.exp.{command} params={folder}/best_params.yaml"
_CONFIG = "config"


@dataclass(frozen=True)
class Origin:
    """The arguments that a run was started with, of which only `chosen_options` are read, and where paths start."""

    arguments: Sequence[str]
    base: Path


_origin: ContextVar[Origin] = ContextVar("origin")


@contextmanager
def started_from(origin: Origin) -> Iterator[None]:
    """Say for the block what the run was started from (a command changes the working directory)."""
    token = _origin.set(origin)
    try:
        yield
    finally:
        _origin.reset(token)


def chosen_options(arguments: Sequence[str]) -> dict[str, str]:
    """The option of every group of `conf/config.yaml`: the last one among the arguments, else the default.

    Nothing but words that name an option of `conf/` is taken from the arguments, whoever wrote them.
    """
    known = groups(_CONFIG)
    pairs = [argument.split("=", 1) for argument in arguments if "=" in argument]
    chosen = {group: value.strip("\"'") for group, value in pairs if value.strip("\"'") in known.get(group, ())}
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [f"{group}={option}" for group, option in chosen.items()]
        composed = compose(_CONFIG, overrides, return_hydra_config=True)
    return {str(group): str(option) for group, option in composed.hydra.runtime.choices.items() if group in known}


def replay_keys(settings: ExperimentSettings) -> dict[str, Any]:
    """Group choices, then every dotted key in which ``settings`` differ from them. Paths are absolute."""
    from src.pipeline.settings import ExperimentSettings  # torch: not for a command line that is only judged

    origin = _origin.get()
    choices = chosen_options(origin.arguments)
    content, _ = compose_plain(_CONFIG, [f"{group}={option}" for group, option in choices.items()])
    start = nested_plain(to_settings(content, ExperimentSettings, str(origin.base)))
    return {**choices, **_differences(nested_plain(settings), start)}


def _differences(wanted: dict[str, Any], start: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    different: dict[str, Any] = {}
    for key, value in wanted.items():
        if isinstance(value, dict):
            different.update(_differences(value, start[key], f"{prefix}{key}."))
        elif value != start[key]:
            different[f"{prefix}{key}"] = value
    return different
