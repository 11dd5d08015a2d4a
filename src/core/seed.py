"""Randomness by name: each purpose draws from its own stream, so that adding a draw here shifts nothing there."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_deterministic: Any = torch.utils.deterministic  # a module that is replaced by an object with this setting


def derive_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed for a named purpose, stable across processes and Python versions."""
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, *purpose: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator of its own for a named purpose."""
    generator = torch.Generator(device=device)
    generator.manual_seed(derive_seed(seed, *purpose))
    return generator


def numpy_generator(seed: int, *purpose: object) -> np.random.Generator:
    """A numpy generator of its own for a named purpose."""
    return np.random.default_rng(derive_seed(seed, *purpose))


def seed_everything(seed: int, *purpose: object) -> None:
    """Seed the global streams (initialisation and dropout draw from them)."""
    value = derive_seed(seed, *purpose)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


@contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """Deterministic kernels, float32 that is float32, and a fixed number of CPU threads inside the block.

    Sums are added in another order with another number of threads, so a run can be repeated bit by bit only where the
    number is part of its configuration. ``threads`` ≥ 1.
    """
    threads_before, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    # cuDNN multiplies float32 with ten bits of mantissa where it may: convolutions and recurrent layers, no others
    tf32, filling = torch.backends.cudnn.allow_tf32, _deterministic.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    # the CPU kernels that training uses add in a fixed order anyway
    torch.use_deterministic_algorithms(torch.cuda.is_available(), warn_only=True)
    # a kernel for each new tensor, which helps only a program that reads memory it never wrote
    _deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        torch.use_deterministic_algorithms(deterministic)
        _deterministic.fill_uninitialized_memory = filling
        torch.backends.cudnn.allow_tf32 = tf32
