"""A Ray of this search's own on this machine, or an existing cluster; quiet, private, and gone afterwards."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
import torch
from ray._private import services
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from src.core.errors import ConfigError, Problem
from src.core.logging import get_logger
from src.core.paths import REPOSITORY
from src.tuning.processes import forget_children, remember_children
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
_AUTH, _LOCAL = "RAY_AUTH_MODE", ("127.0.0.1", "localhost")
_SECONDS_TO_CONNECT = 5
_START = "start one with `ray start --head`, see cmd/cluster.yaml"


def check_ray(settings: RaySettings, dashboard: bool) -> None:
    """Raises ``ConfigError`` for an address that does not answer, and for a dashboard that anyone could use."""
    problems = []
    if settings.address and (problem := _unreachable(settings.address)):
        problems.append(problem)
    open_to_all = dashboard and settings.dashboard_host not in _LOCAL
    if open_to_all and os.environ.get(_AUTH, "token") != "token":
        rule = f"needs token authentication, which {_AUTH}={os.environ[_AUTH]} switches off"
        problems.append(
            Problem("ray.dashboard_host", settings.dashboard_host, rule, f"unset {_AUTH}, or use 127.0.0.1")
        )
    if dashboard and settings.address:
        rule = "an existing cluster has its own dashboard"
        problems.append(Problem("dashboard", True, rule, "look at that one, on port 8265 of the head node"))
    if problems:
        raise ConfigError(problems)


def _unreachable(address: str) -> Problem | None:
    if address == "auto":
        return None if _known_cluster() else Problem("ray.address", "auto", "no Ray cluster runs here", _START)
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return Problem("ray.address", address, "must be auto or HOST:PORT", "6379 is the port of `ray start --head`")
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_CONNECT).close()
    except OSError as error:
        rule = f"no cluster answers there ({error})"
        return Problem("ray.address", address, rule, _START)
    return None


def _known_cluster() -> bool:
    """Whether `auto` would find a cluster: by the environment, or by what `ray start` noted on this machine."""
    try:
        return bool(os.environ.get("RAY_ADDRESS") or services.find_gcs_addresses())
    except (OSError, RuntimeError):
        return False


def private_token() -> Path | None:
    """Ray's token file, readable by this user alone (Ray would make it readable by everyone); None if disabled."""
    # `ray.init` switches token authentication on where the variable is not set
    if os.environ.get(_AUTH, "token") != "token" or "RAY_AUTH_TOKEN" in os.environ:
        return None
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", str(Path.home() / ".ray" / "auth_token")))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as handle:
            handle.write(secrets.token_hex(32))
    except FileExistsError:
        path.chmod(0o600)
    return path


@contextmanager
def ray_session(settings: RaySettings, dashboard: bool, wants_gpu: bool, folder: Path) -> Iterator[Path]:
    """Ray for the block; yields a scratch folder. ``folder`` notes what a SIGKILL of this process would leave behind.

    Raises ``ConfigError`` when the cluster cannot be joined.
    """
    os.environ.update(_ENVIRONMENT)
    # a worker imports `src`, and the user's own modules, wherever it was started
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    scratch = Path(tempfile.mkdtemp(prefix="anyo-"))  # short: Ray's sockets lie in it
    try:
        if settings.address:
            _join(settings.address)
        else:
            remember_children(folder, scratch)
            _start(settings, dashboard, wants_gpu, scratch)
        # a failed trial's traceback lies in its folder; the screen tells it in a line
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        remember_children(folder, scratch)
        yield scratch
    finally:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)
        forget_children(folder)


def _start(settings: RaySettings, dashboard: bool, wants_gpu: bool, scratch: Path) -> None:
    private_token()
    ray.init(
        num_cpus=os.cpu_count(),
        num_gpus=torch.cuda.device_count() if wants_gpu else 0,
        include_dashboard=dashboard,
        dashboard_host=settings.dashboard_host,
        dashboard_port=settings.dashboard_port,
        log_to_driver=False,
        configure_logging=False,
        object_store_memory=settings.memory_mb * 2**20,
        _temp_dir=str(scratch / "ray"),
    )
    if dashboard:
        _log.info("Ray dashboard: http://%s:%d", settings.dashboard_host, settings.dashboard_port)


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
        rule = f"the cluster cannot be joined ({str(error).splitlines()[0]})"
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
