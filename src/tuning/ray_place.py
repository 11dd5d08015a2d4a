"""Where a Ray of this machine finds room: a short private folder for its sockets, its token, the paths it is told."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from src.core.errors import ConfigError, Problem
from src.core.logging import get_logger
from src.core.paths import REPOSITORY

_log = get_logger(__name__)

AUTH_MODE = "RAY_AUTH_MODE"
_TOKEN, _TOKEN_PATH = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
#: scratch folders begin so
_PREFIX = "anyo-"
#: the longest path of a socket that Ray makes below a scratch folder: its session is named by time and process
_SOCKET = f"ray/session_{'0' * 26}_{'0' * 7}/sockets/plasma_store"
#: these would make Ray join another cluster, or put its files elsewhere, whatever it is told
_NOT_OURS = ("RAY_ADDRESS", "RAY_TMPDIR", "RAY_NAMESPACE", "RAY_JOB_CONFIG_JSON_ENV_VAR")


# ------------------------------------------------------------------------------------------------- a folder for sockets


def scratch_folder() -> Path:
    """A new folder of this user alone, short enough for Ray's sockets: in the user's own place for temporary files
    where that will do, else where a system has such places.

    Raises ``ConfigError`` where there is none.
    """
    tried = list[str]()
    for base in _bases():
        try:
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))  # mode 0700, and nobody's before
        except OSError as error:
            tried.append(f"{base} cannot be written ({error.strerror})")
            continue
        if (reason := _no_socket(folder / _SOCKET)) is None:
            if tried:
                _log.debug("Ray's files lie in %s: %s", folder, "; ".join(tried))
            return folder
        tried.append(f"{base} {reason}")
        shutil.rmtree(folder, ignore_errors=True)
    step = "set TMPDIR to a folder that can be written, on a local disk, with a path of at most 24 characters"
    raise ConfigError.one("TMPDIR", os.environ.get("TMPDIR"), f"no folder for Ray's sockets: {'; '.join(tried)}", step)


def _bases() -> list[Path]:
    """Places for temporary files, the user's own first, each once."""
    found = list[Path]()
    with suppress(OSError):  # not one of them can be written
        found.append(Path(tempfile.gettempdir()))
    named = ("/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm")
    found += [Path(place) for place in named if place and Path(place).is_dir()]
    return list(dict.fromkeys(found))


def _no_socket(path: Path) -> str | None:
    """Why no socket can be made at a path, None when one was made: paths have a limit, and not every disk has them."""
    try:
        path.parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    except OSError as error:
        return "is too long" if error.strerror is None else f"has no sockets ({error.strerror})"
    finally:
        shutil.rmtree(path.parents[2], ignore_errors=True)
    return None


# ------------------------------------------------------------------------------------------------------------ the token


def private_token(spare: Path) -> Path | None:
    """The file with Ray's token, readable by this user alone (Ray would make it readable by everyone).

    It is the user's own, which the dashboard and other commands of Ray read too; where that cannot be read or written,
    one in the folder ``spare``. None where authentication is switched off or the token itself is in the environment.
    """
    # `ray.init` switches token authentication on where the variable is not set
    if os.environ.get(AUTH_MODE, "token") != "token" or os.environ.get(_TOKEN):
        return None
    try:
        named = os.environ.get(_TOKEN_PATH)
        path = Path(named) if named else Path.home() / ".ray" / "auth_token"
        return _kept_token(path)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: nobody knows this user's home
        path = _kept_token(spare / "token")
        _log.info("Ray's token lies in %s while the search runs: your own cannot be used (%s)", path, error)
        return path


def _can_be_sent(token: bytes) -> bool:
    """Whether Ray can send a token; with any other one its processes, and this one, end at once (measured: 2.60)."""
    return all(32 <= sign < 127 for sign in token.strip())


def _kept_token(path: Path) -> Path:
    """The token in this file; a new one where there is none, or an empty file; raises ``ValueError`` for no token."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = path.read_bytes().strip() if path.exists() else b""
    if not _can_be_sent(kept.partition(b"\n")[0]):  # Ray reads the first line
        raise ValueError(f"{path} holds signs that no token has")
    if not kept:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write(secrets.token_hex(32))
        os.replace(name, path)
    path.chmod(0o600)
    return path


# ------------------------------------------------------------------------------------------------------ the environment


def offered_gpus(device: str) -> tuple[int, dict[str, str]]:
    """How many GPUs trials may use, and what their processes must be told: every GPU, or the one that is named.

    A worker sees the GPU that Ray gives it and no other, so there its number is 0.
    """
    if device == "cpu" or not torch.cuda.is_available():
        return 0, {}
    if not device.startswith("cuda:"):
        return torch.cuda.device_count(), {}
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    index = int(device.removeprefix("cuda:"))
    return 1, {"CUDA_VISIBLE_DEVICES": visible[index] if visible else str(index)}


def session_environment(scratch: Path, token: Path | None) -> dict[str, str]:
    """What a Ray of this search's own, and everything that it starts, must find in its environment."""
    return {"RAY_TMPDIR": str(scratch), **({_TOKEN_PATH: str(token)} if token is not None else {})}


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """The process's environment with these values, and without what would lead Ray elsewhere; afterwards as it was."""
    before = {name: os.environ.get(name) for name in (*values, *_NOT_OURS)}
    for name in _NOT_OURS:
        os.environ.pop(name, None)
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def interpreter() -> dict[str, str]:
    """Ray's `runtime_env` where this Python's path needs quotes: Ray puts it into a shell's command as it is."""
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


def check_place() -> list[Problem]:
    """What would keep a Ray of this search's own from starting, found without starting one."""
    problems = []
    try:
        scratch = scratch_folder()
    except ConfigError as error:
        return list(error.problems)
    shutil.rmtree(scratch, ignore_errors=True)
    token = os.environ.get(_TOKEN, "")
    if os.environ.get(AUTH_MODE, "token") == "token" and not _can_be_sent(os.fsencode(token)):
        rule = "holds signs that no token has, and Ray's processes would end at once"
        problems.append(Problem(_TOKEN, f"{len(token)} characters", rule, "unset it, or set it to letters and digits"))
    if os.pathsep in str(REPOSITORY):
        rule = f"its path holds {os.pathsep!r}, which parts paths: no worker would find the code"
        problems.append(Problem("checkout", str(REPOSITORY), rule, "move it to another folder"))
    return problems
