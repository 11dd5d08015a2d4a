"""`resume=FOLDER`: a search goes on with the settings it was started with; a few of them may be changed."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic.dataclasses import dataclass as document

from src.config.composition import RUN_DIR
from src.config.reading import absolute, read_settings
from src.config.replay import Origin
from src.core.documents import PARTIAL, append_json_line, conform, read_mapping, read_yaml_mapping
from src.core.errors import ArtefactError, ConfigError, Problem
from src.core.logging import get_logger
from src.core.paths import MANIFEST, strange_entries, write_json
from src.core.result_files import COMMAND_FILE, RESUMES, SETTINGS_FILE, SPACE_FILE
from src.core.settings import nested_plain
from src.pipeline.run_folder import RunFolder, journal_locks

_log = get_logger(__name__)

S = TypeVar("S")

RESUME = "resume"
#: what `resume=FOLDER` may change: how much is searched, with what, and where things lie now; never what is searched.
#: `student.graphs` launches the same numbers in another way
RESUMABLE = frozenset(
    {
        "trials", "dashboard", "reopen_test", "ray.address", "ray.memory_mb", "ray.dashboard_host",
        "ray.dashboard_port", "tuning.gpu_per_trial", "tuning.population", "tuning.retries", "tuning.stall_minutes",
        "tuning.keep_top", "tuning.max_folder_mb", "tuning.resamples", "dataset.root", "teacher.llm",
        "distill.outputs_from", "runtime.device", "runtime.cache", "runtime.reuse", "runtime.tracking",
        "student.graphs",
    }
)  # fmt: skip


#: folders in a result that other programs write, links among them: W&B's, MLflow's
OF_OTHERS = frozenset({"wandb", "mlruns"})
#: values of `ray.address` that name no other machine: none, and what the user's own shell or machine says
_OWN_CLUSTERS = ("", "auto")
_ADDRESS = "ray.address"


@document(frozen=True, config=PARTIAL)
class StartedCommand:
    """What a search was started with, as `command.json` tells it. Its arguments are a record: nothing runs by them."""

    command: str
    arguments: list[str]
    cwd: str


@dataclass(frozen=True)
class ResumedSearch(Generic[S]):
    """A folder to go on in, the settings, what was changed, and what the search was started from."""

    folder: Path
    settings: S
    changes: list[str]
    origin: Origin


def resume_argument(arguments: Sequence[str]) -> Path | None:
    """The folder that ``resume=`` names, None where there is no such argument or it is null."""
    given = [argument.split("=", 1)[1] for argument in arguments if argument.startswith(f"{RESUME}=")]
    if not given or given[-1] in ("", "null"):
        return None
    return Path(given[-1].strip("\"'")).expanduser().resolve()


def remember_command(folder: Path, command: str, arguments: Sequence[str]) -> None:
    """`command.json`: what the search was started with.

    Args:
        folder: the search's result folder.
        command: the entry point's name, such as ``tune_distill``.
        arguments: those of the command line, with ``params=`` written out.
    """
    write_json(folder / COMMAND_FILE, {"command": command, "arguments": list(arguments), "cwd": str(Path.cwd())})


def read_begun(folder: Path, command: str) -> StartedCommand:
    """What the search in a folder was started with; nothing is changed in it.

    Raises ``ConfigError`` for a folder of another command, ``ArtefactError`` for one that holds no search.
    """
    if not folder.is_dir():
        rule = "is no folder" if folder.exists() else "does not exist"
        raise ConfigError.one(RESUME, str(folder), rule, "name the result folder of a search")
    if not (folder / COMMAND_FILE).is_file():
        rule = f"has no {COMMAND_FILE}: no search was started in it"
        raise ArtefactError.one(RESUME, str(folder), rule, "name the result folder of a tune_* command")
    locks = [lock.name for lock in journal_locks(folder)]
    if strange := list(islice(strange_entries(folder, {*locks, *OF_OTHERS}), 3)):
        names = ", ".join(str(path.relative_to(folder)) for path in strange)
        rule = f"holds links or other things that are no plain files ({names}): what is written there lands elsewhere"
        raise ArtefactError.one(RESUME, str(folder), rule, "put the files themselves in their place")
    begun = read_mapping(folder / COMMAND_FILE, StartedCommand, "name the result folder of a tune_* command")
    if begun.command != command:
        known = re.fullmatch(r"tune_\w+", begun.command)
        step = go_on(begun.command, folder, None) if known else "name a result of this command"
        raise ConfigError.one(RESUME, str(folder), f"was made by {begun.command}, not by {command}", step)
    return begun


def read_resumed(
    folder: Path, command: str, config_name: str, schema: type[S], allowed: Collection[str], arguments: Sequence[str]
) -> ResumedSearch[S]:
    """The settings of `settings.yaml` with the allowed changes; nothing is changed in the folder.

    Raises ``ConfigError`` for a folder of another command and for keys that are fixed, ``ArtefactError`` for one that
    holds no search or whose settings are damaged.

    Args:
        folder: the search's result folder.
        command: the entry point's name.
        config_name: its config in `conf/`.
        schema: what its settings are.
        allowed: keys that may be changed.
        arguments: those of the command line, ``resume=`` among them.
    """
    begun = read_begun(folder, command)
    changes = [argument for argument in arguments if argument.split("=", 1)[0] not in (RESUME, RUN_DIR)]
    if any(argument.startswith(f"{RUN_DIR}=") for argument in arguments):
        _log.warning("%s is not used: a search goes on in its own folder, %s", RUN_DIR, folder)
    fixed = [change for change in changes if change.split("=", 1)[0] not in allowed]
    if fixed:
        rule = "is fixed: the trials of one search must be comparable"
        step = f"start a new search, or change one of {', '.join(sorted(allowed))}"
        raise ConfigError([Problem("resume", change, rule, step) for change in fixed])
    path = folder / SETTINGS_FILE
    step = f"the study and the trials are intact: restore it from {folder}/config/config.yaml"
    # with what it lacks by default: a key may be newer than the search
    saved = nested_plain(_conform(read_yaml_mapping(path, step), schema, path))
    ray = dict(saved.get("ray", {}))
    if changes:
        nested = nested_plain(read_settings(config_name, changes, schema)[0])
        for change in changes:
            key = change.split("=", 1)[0]
            if key == "trials" and nested[key] < saved[key]:
                rule = f"may be raised, not lowered: the search was started with {saved[key]}"
                raise ConfigError.one(key, nested[key], rule)
            _copy(key, nested, saved)
    if (folder / SPACE_FILE).is_file():
        saved["tuning"]["search_space"] = str(folder / SPACE_FILE)
        saved["warm_start"] = None  # its trials are in the study, and the earlier result may be gone
    settings = absolute(_conform(saved, schema, path), folder)
    consents = any(change.startswith(f"{_ADDRESS}=") for change in changes)
    if consents and saved["ray"] == ray:  # to the cluster that the search has: no change
        changes = [change for change in changes if not change.startswith(f"{_ADDRESS}=")]
    finished = (folder / MANIFEST).exists() and not changes  # nothing of it runs any more
    if (address := _address(settings)) and not consents and not finished:
        rule = "is the cluster of who started this search: its trials would run there, and its answers here as code"
        step = f"if you trust it, name it yourself: ray.address={address}; else ray.address= for this machine"
        raise ConfigError.one("ray.address", address, rule, step)
    return ResumedSearch(folder, settings, changes, Origin(begun.arguments, Path(begun.cwd)))


def _address(settings: object) -> str:
    """Another machine's cluster that some settings name; empty where they name none."""
    address = str(getattr(getattr(settings, "ray", None), "address", ""))
    return "" if address in _OWN_CLUSTERS else address


def go_on(command: str, folder: Path, settings: object) -> str:
    """The command that goes on with a search.

    Args:
        command: the entry point's name.
        folder: the search's result folder.
        settings: the search's.
    """
    cluster = [f"ray.address={address}"] if (address := _address(settings)) else []
    return shlex.join(["python", "-m", f"src.exp.{command}", f"resume={folder}", *cluster])


def _conform(saved: Mapping[str, Any], schema: type[S], path: Path) -> S:
    return conform(saved, schema, path, "the study beside it is intact; go on with the version that wrote it")


def _copy(key: str, source: dict[str, Any], target: dict[str, Any]) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        source, target = source[parent], target[parent]
    target[leaf] = source[leaf]


def log_resume(resumed: ResumedSearch[Any]) -> None:
    """A line in `resumes.jsonl`, and the settings as they are now."""
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "changes": resumed.changes}
    append_json_line(resumed.folder / RESUMES, line)
    if resumed.changes:
        RunFolder(resumed.folder).write_settings(nested_plain(resumed.settings))
