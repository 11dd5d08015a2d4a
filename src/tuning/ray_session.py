"""A Ray of this search's own on this machine, or an existing cluster; quiet, private, and gone afterwards."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import ray
import torch
from ray._private import services
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from src.core.errors import ConfigError, Paused, Problem, first_line
from src.core.logging import get_logger
from src.core.memory import memory_of
from src.core.paths import REPOSITORY
from src.tuning.processes import forget_children, remember_children
from src.tuning.ray_place import (
    AUTH_MODE,
    check_place,
    environment,
    interpreter,
    offered_gpus,
    private_token,
    scratch_folder,
    session_environment,
)
from src.tuning.settings import RaySettings
from src.tuning.store import Store

_log = get_logger(__name__)

_ENVIRONMENT = {
    # a report without the objective must not end the whole search
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # a worker that takes long to clean up would otherwise be lost, and with it a slot, for ever
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",
    # Tune's own snapshots are never read: the study is the record
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # signals are this project's business: Tune would answer Ctrl-C alone, and SIGTERM not at all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # only our own lines on the terminal
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # trials keep the caller's folder, so relative paths mean what they say
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # a trial with no GPU share must not reach for the GPU
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_LOCAL = ("127.0.0.1", "localhost")
_SECONDS_TO_CONNECT = 5
_LINES = 10
_ATTEMPTS = ("ray", "two")  # as long as `ray_place` reckons with
_START = "start one with `ray start --head`, see cmd/cluster.yaml"


def check_ray(settings: RaySettings, dashboard: bool) -> None:
    """Raises ``ConfigError`` for a cluster that does not answer, for a dashboard that anyone could use or nobody, and
    where a Ray of this machine would find no place for its files, or no memory."""
    problems = [] if settings.address else [*check_place(), *_beyond_memory(settings)]
    if settings.address and (problem := _unreachable(settings.address)):
        problems.append(problem)
    open_to_all = dashboard and settings.dashboard_host not in _LOCAL
    if open_to_all and os.environ.get(AUTH_MODE, "token") != "token":
        rule = f"needs token authentication, which {AUTH_MODE}={os.environ[AUTH_MODE]} switches off"
        problems.append(
            Problem("ray.dashboard_host", settings.dashboard_host, rule, f"unset {AUTH_MODE}, or use 127.0.0.1")
        )
    if dashboard and not settings.address and (reason := _not_ours(settings.dashboard_host)):
        rule = f"is no address of this machine ({reason})"
        problems.append(Problem("ray.dashboard_host", settings.dashboard_host, rule, "use 127.0.0.1"))
    if dashboard and settings.address:
        rule = "an existing cluster has its own dashboard"
        problems.append(Problem("dashboard", True, rule, "look at that one, on port 8265 of the head node"))
    if problems:
        raise ConfigError(problems)


def _beyond_memory(settings: RaySettings) -> list[Problem]:
    room = memory_of(torch.device("cpu")) / 2**20
    if settings.memory_mb < room:
        return []
    rule = f"this machine has {room:,.0f} MB, of which Ray's object store is a part"
    return [Problem("ray.memory_mb", settings.memory_mb, rule, "leave it at 128: trials' data do not lie there")]


def _not_ours(host: str) -> str:
    """Why nobody can listen on an address here; empty where somebody can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.bind(address)
    except (OSError, UnicodeError) as error:
        return str(getattr(error, "strerror", None) or error)
    return ""


def _unreachable(address: str) -> Problem | None:
    known = _known_clusters() if address == "auto" else [address]
    if not known:
        return Problem("ray.address", address, "no Ray cluster runs here", _START)
    refusals = [_refusal(one) for one in known]
    if None in refusals:
        return None
    rule, step = refusals[0] or ("", "")
    source = " of RAY_ADDRESS" if address == "auto" and os.environ.get("RAY_ADDRESS") else ""
    return Problem("ray.address", address, rule.format(source=source), step)


def _refusal(address: str) -> tuple[str, str] | None:
    """Rule and next step where nothing answers at an address."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return "must be auto or HOST:PORT{source}", "6379 is the port of `ray start --head`"
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        return f"no cluster answers at {address}{{source}} ({error})", _START
    return None


def _known_clusters() -> list[str]:
    """Clusters that `auto` would find: by the environment, or by what `ray start` noted on this machine."""
    named = os.environ.get("RAY_ADDRESS", "")
    if named and named not in ("auto", "local"):
        return [named]
    try:
        return sorted(services.find_gcs_addresses())
    except (OSError, RuntimeError):
        return []


@contextmanager
def ray_session(settings: RaySettings, dashboard: bool, device: str, folder: Path) -> Iterator[Path]:
    """Ray for the block; yields a scratch folder.

    Args:
        settings: An existing cluster, or none: a Ray of this search's own on this machine.
        dashboard: Whether a Ray of its own shows its dashboard.
        device: `runtime.device`; a GPU that is named is the only one that trials get.
        folder: The result folder, which notes what a SIGKILL of this process would leave behind.

    Raises:
        ConfigError: the cluster cannot be joined, or no folder is fit for Ray's files.
        Paused: Ray did not start.
    """
    os.environ.update(_ENVIRONMENT)
    # a worker imports `src`, and the user's own modules, wherever it was started
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    scratch = scratch_folder()
    try:
        with ExitStack() as stack:
            if settings.address:
                stack.callback(ray.shutdown)
                _join(settings.address)
            else:
                remember_children(folder, scratch)
                gpus, told = offered_gpus(device)
                stack.enter_context(environment({**session_environment(scratch, private_token(scratch)), **told}))
                stack.callback(ray.shutdown)
                _start(settings, dashboard, gpus, scratch)
            # a failed trial's traceback lies in its folder; the screen tells it in a line
            logging.getLogger("ray").setLevel(logging.CRITICAL)
            remember_children(folder, scratch)
            yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        forget_children(folder)


def _start(settings: RaySettings, dashboard: bool, gpus: int, scratch: Path) -> None:
    """Start Ray, once more where it does not come up: its processes get half a minute, and machines are busy."""
    for name in _ATTEMPTS:
        others = set(psutil.Process().children(recursive=True))
        try:
            ray.init(
                address="local",
                num_cpus=os.cpu_count(),
                num_gpus=gpus,
                include_dashboard=dashboard,
                dashboard_host=settings.dashboard_host,
                dashboard_port=settings.dashboard_port,
                log_to_driver=False,
                configure_logging=False,
                object_store_memory=settings.memory_mb * 2**20,
                runtime_env=interpreter() or None,
                _temp_dir=str(scratch / name),
            )
        except Exception as error:  # noqa: BLE001 - Ray raises `Exception` itself for processes that do not come up
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            _log.debug("what Ray's processes said:\n%s", _said(scratch / name), exc_info=True)
            ray.shutdown()
            _end(set(psutil.Process().children(recursive=True)) - others)
            _log.info("Ray did not start (%s)", reason)
        else:
            if dashboard:
                _log.info("Ray dashboard: http://%s:%d", settings.dashboard_host, settings.dashboard_port)
            return
    raise Paused(f"Ray did not start on this machine ({reason}); run.log holds what its processes said")


def _end(processes: set[psutil.Process]) -> None:
    """What a Ray that did not come up has left."""
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def _said(folder: Path) -> str:
    """The last lines of the logs of Ray's own processes, which go with the scratch folder."""
    told = []
    for file in sorted(folder.glob("session_*/logs/*")):
        if file.is_file() and not file.is_symlink() and file.suffix in (".err", ".out", ".log"):
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES:]
            told += [f"{file.name}: {line}" for line in lines]
    return "\n".join(told)


def _join(address: str) -> None:
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            configure_logging=False,
            # the nodes need the dependencies; this checkout's code travels with the search
            runtime_env={"py_modules": [str(REPOSITORY / "src")]},
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        rule = f"the cluster cannot be joined ({first_line(error)})"
        raise ConfigError.one("ray.address", address, rule, "see cmd/cluster.yaml") from None


def check_shared(store: Store) -> None:
    """Raises ``ConfigError`` when some node of the cluster does not see the files that this driver writes."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    mark = secrets.token_hex(8)
    store.write(".shared", mark.encode())

    def look(place: Store) -> bool:
        return place.read(".shared") == mark.encode()

    task = ray.remote(num_cpus=0)(look)
    try:
        seen = {
            node["NodeManagerAddress"]: task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(store)
            for node in nodes
        }
        blind = [address for address, answer in seen.items() if not ray.get(answer)]
    finally:
        store.remove(".shared")
    if blind:
        rule = f"is not shared: {', '.join(blind)} cannot see it"
        step = "name a folder that every node mounts at the same path, or a URL such as s3://bucket/folder"
        raise ConfigError.one("storage", store.root, rule, step)
