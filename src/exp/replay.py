"""`best_params.yaml`: the shortest list of keys from which `run_distill` repeats a trial."""

from __future__ import annotations

from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_original_cwd

from src.exp.door import compose_plain, nested_plain, to_settings
from src.pipeline.settings import ExperimentSettings

#: which command trains the winner of each stage once more
REPLAY_WITH = {"distill": "run_distill", "student": "run_student_baseline", "teacher": "run_teacher"}
REPLAY_HEADING = "Replay from the repository's root:\n  python -m src.exp.{command} params={folder}/best_params.yaml"
_CONFIG = "config"


def group_choices() -> dict[str, str]:
    """The options of `conf/config.yaml`'s groups that the running job was composed from."""
    known, _ = compose_plain(_CONFIG, [])
    chosen = HydraConfig.get().runtime.choices
    return {str(group): str(option) for group, option in chosen.items() if str(group) in known}


def replay_keys(settings: ExperimentSettings) -> dict[str, Any]:
    """Group choices, then every dotted key in which ``settings`` differ from them. Paths are absolute."""
    choices = group_choices()
    content, _ = compose_plain(_CONFIG, [f"{group}={option}" for group, option in choices.items()])
    start = nested_plain(to_settings(content, ExperimentSettings, get_original_cwd()))
    return {**choices, **_differences(nested_plain(settings), start)}


def _differences(wanted: dict[str, Any], start: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    different: dict[str, Any] = {}
    for key, value in wanted.items():
        if isinstance(value, dict):
            different.update(_differences(value, start[key], f"{prefix}{key}."))
        elif value != start[key]:
            different[f"{prefix}{key}"] = value
    return different
