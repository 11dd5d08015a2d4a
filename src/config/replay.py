"""The shortest list of keys from which a command repeats an experiment: what `best_params.yaml` holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.config.composition import compose_choices, compose_plain, groups
from src.config.reading import to_settings
from src.core.settings import nested_plain

if TYPE_CHECKING:
    from src.pipeline.settings import ExperimentSettings

_CONFIG = "config"


@dataclass(frozen=True)
class Origin:
    """The arguments that a run was started with, of which only `chosen_options` are read, and where paths start."""

    arguments: Sequence[str]
    base: Path

    def replay_keys(self, settings: ExperimentSettings) -> dict[str, Any]:
        """Group choices, then every dotted key in which ``settings`` differ from them. Paths are absolute."""
        from src.pipeline.settings import ExperimentSettings  # torch: not for a command line that is only judged

        choices = chosen_options(self.arguments)
        content, _ = compose_plain(_CONFIG, [f"{group}={option}" for group, option in choices.items()])
        start = nested_plain(to_settings(content, ExperimentSettings, str(self.base)))
        return {**choices, **_differences(nested_plain(settings), start)}


def chosen_options(arguments: Sequence[str]) -> dict[str, str]:
    """The option of every group of `conf/config.yaml`: the last one among the arguments, else the default.

    Nothing but words that name an option of `conf/` is taken from the arguments, whoever wrote them.
    """
    known = groups(_CONFIG)
    pairs = [argument.split("=", 1) for argument in arguments if "=" in argument]
    chosen = {group: value.strip("\"'") for group, value in pairs if value.strip("\"'") in known.get(group, ())}
    return compose_choices(_CONFIG, chosen)


def _differences(wanted: dict[str, Any], start: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    different: dict[str, Any] = {}
    for key, value in wanted.items():
        if isinstance(value, dict):
            different.update(_differences(value, start[key], f"{prefix}{key}."))
        elif value != start[key]:
            different[f"{prefix}{key}"] = value
    return different
