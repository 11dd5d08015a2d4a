"""What a run stood on: machine, devices, versions. And the choice of a device by name."""

from __future__ import annotations

import math
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from src.core.errors import ConfigError

_PACKAGES = ("torch", "numpy", "pandas", "transformers", "peft", "ray", "optuna", "hydra-core", "safetensors")


def resolve_device(name: str) -> torch.device:
    """``auto`` is the first GPU, else the CPU; any other name is torch's own (``cpu``, ``cuda``, ``cuda:1``).

    A GPU always comes with its index, because some of torch's functions refuse one without: ``cuda`` is ``cuda:0``.
    Raises ``ConfigError`` for an unknown name and for a GPU that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError.one("runtime.device", name, "is no device name", "use auto, cpu, cuda or cuda:N") from None
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ConfigError.one("runtime.device", name, "no CUDA device is available", "use runtime.device=cpu")
    index, count = device.index or 0, torch.cuda.device_count()
    if index >= count:
        rule = f"is not there: this machine has {count}, which count from 0"
        raise ConfigError.one("runtime.device", name, rule, f"cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", index)


def mps_runs() -> bool:
    """Whether an MPS control daemon listens, through which processes compute on a GPU at the same time."""
    return (Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")) / "control").exists()


def share_compute(share: float) -> None:
    """Tell MPS, where it runs, which part of the GPU's processors this process may use; 0 or 1: all of them.

    It has to be said before the process touches its GPU. Twice the share, as NVIDIA advises: what one process leaves
    idle is another's.
    """
    if 0 < share < 1 and mps_runs() and not torch.cuda.is_initialized():
        os.environ["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(min(100, math.ceil(200 * share)))


def no_cudnn_attention() -> None:
    """Keep torch from cuDNN's attention, which it prefers on Hopper GPUs: it plans anew for each length of a batch
    (tens of milliseconds), and masked rows in half precision may get gradients that are no numbers (pytorch#196678).
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def package_versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide results; None where a package is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores, platform and GPUs."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"platform": platform.platform(), "machine": platform.machine(), "cpu_cores": os.cpu_count(), "gpus": gpus}


def command_line() -> list[str]:
    """The command that started this process, as given."""
    return [sys.executable, *sys.argv]
