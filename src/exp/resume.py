"""`resume=FOLDER`: a search goes on with the settings it was started with; a few of them may be changed."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from src.core.errors import ArtefactError, ConfigError, Problem
from src.core.paths import read_json, write_json, write_text
from src.exp.door import absolute, nested_plain, read_settings
from src.pipeline.run_folder import SETTINGS_FILE

S = TypeVar("S")

RESUME = "resume"
COMMAND_FILE = "command.json"
LOG_FILE = "resumes.jsonl"
#: the search space as it was when the search was started
SPACE_FILE = "search_space.yaml"
#: what `resume=FOLDER` may change: how much is searched and with what, never what is searched
RESUMABLE = frozenset(
    {
        "trials", "dashboard", "reopen_test", "ray.address", "ray.memory_mb", "ray.dashboard_host",
        "ray.dashboard_port", "tuning.gpu_per_trial", "tuning.retries", "tuning.stall_minutes", "tuning.keep_top",
        "tuning.max_folder_mb", "tuning.resamples",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Resumed(Generic[S]):
    """A folder to go on in, the arguments that describe it, the settings, and what was changed."""

    folder: Path
    arguments: list[str]
    settings: S
    changes: list[str]


def resume_argument(arguments: Sequence[str]) -> Path | None:
    """The folder that ``resume=`` names, None where there is no such argument or it is null."""
    given = [argument.split("=", 1)[1] for argument in arguments if argument.startswith(f"{RESUME}=")]
    if not given or given[-1] in ("", "null"):
        return None
    return Path(given[-1].strip("\"'")).expanduser().resolve()


def remember_command(folder: Path, command: str, arguments: Sequence[str]) -> None:
    """`command.json`: what the search was started with."""
    write_json(folder / COMMAND_FILE, {"command": command, "arguments": list(arguments), "cwd": str(Path.cwd())})


def read_resumed(
    folder: Path, command: str, config_name: str, schema: type[S], allowed: Collection[str], arguments: Sequence[str]
) -> Resumed[S]:
    """Saved settings with the allowed changes.

    Raises ``ConfigError`` for a folder of another command and for keys that are fixed, ``ArtefactError`` for one that
    holds no search or whose settings are damaged.
    """
    begun = _read_command(folder, command)
    changes = [argument for argument in arguments if not argument.startswith(f"{RESUME}=")]
    fixed = [change for change in changes if change.split("=", 1)[0] not in allowed]
    if fixed:
        rule = "is fixed: the trials of one search must be comparable"
        step = f"start a new search, or change one of {', '.join(sorted(allowed))}"
        raise ConfigError([Problem("resume", change, rule, step) for change in fixed])
    original = [str(argument) for argument in begun["arguments"]]
    changed = {change.split("=", 1)[0] for change in changes}
    kept = [argument for argument in original if argument.split("=", 1)[0] not in changed]
    composed, _ = read_settings(config_name, [*_only_groups(kept), *changes], schema)
    saved = _read_settings(folder)
    nested = nested_plain(composed)
    if "trials" in changed and nested["trials"] < saved["trials"]:
        rule = f"may be raised, not lowered: the search was started with {saved['trials']}"
        raise ConfigError.one("trials", nested["trials"], rule)
    for change in changes:
        _copy(change.split("=", 1)[0], nested, saved)
    if (folder / SPACE_FILE).is_file():
        saved["tuning"]["search_space"] = str(folder / SPACE_FILE)
        saved["warm_start"] = None  # its trials are in the study, and the earlier result may be gone
    try:
        settings = TypeAdapter(schema).validate_json(json.dumps(saved), strict=True)
    except ValidationError as error:
        rule = f"holds no settings of this version ({error.errors()[0]['msg']}); the study beside it is intact"
        raise ArtefactError.one("resume", str(folder / SETTINGS_FILE), rule) from None
    return Resumed(folder, [*kept, *changes], absolute(settings, Path.cwd()), changes)


def _only_groups(arguments: Sequence[str]) -> list[str]:
    """Top-level arguments: group choices decide which keys exist. Values come from the saved settings anyway."""
    return [argument for argument in arguments if "." not in argument.split("=", 1)[0] and "=" in argument]


def _read_command(folder: Path, command: str) -> dict[str, Any]:
    if not folder.is_dir():
        raise ConfigError.one(RESUME, str(folder), "does not exist", "name the result folder of a search")
    if not (folder / COMMAND_FILE).is_file():
        rule = f"has no {COMMAND_FILE}: no search was started in it"
        raise ArtefactError.one(RESUME, str(folder), rule, "name the result folder of a tune_* command")
    begun: dict[str, Any] = read_json(folder / COMMAND_FILE)
    if begun.get("command") != command:
        step = f"python -m src.exp.{begun.get('command')} resume={folder}"
        raise ConfigError.one(RESUME, str(folder), f"was made by {begun.get('command')}, not by {command}", step)
    return begun


def _read_settings(folder: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        content, why = None, f" ({error})"
    else:
        why = ""
    if not isinstance(content, dict):
        rule = f"is missing or damaged{why}; the study and the trials beside it are intact"
        step = f"restore it from {folder}/config/config.yaml"
        raise ArtefactError.one(RESUME, str(folder / SETTINGS_FILE), rule, step)
    return content


def _copy(key: str, source: dict[str, Any], target: dict[str, Any]) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        source, target = source[parent], target[parent]
    target[leaf] = source[leaf]


def log_resume(resumed: Resumed[Any]) -> None:
    """A line in `resumes.jsonl`, and the settings as they are now."""
    lines = previous_resumes(resumed.folder)
    lines.append({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "changes": resumed.changes})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_text(resumed.folder / LOG_FILE, text)
    if resumed.changes:
        heading = "# everything this run was asked for, paths absolute\n"
        content = yaml.safe_dump(nested_plain(resumed.settings), sort_keys=False, allow_unicode=True)
        write_text(resumed.folder / SETTINGS_FILE, heading + content)


def previous_resumes(folder: Path) -> list[dict[str, Any]]:
    """When and with what changes a search went on."""
    path = folder / LOG_FILE
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
