"""Options of the whole test run."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

# Ray ends workers when the machine's memory is nearly full, whoever filled it: not what these tests are about
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")

gc.disable()  # until everything is imported

GOLDEN_VECTORS = Path(__file__).parent / "golden" / "vectors"


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--golden-dir``: run tests/golden on another folder of vectors."""
    parser.addoption(
        "--golden-dir",
        type=Path,
        default=GOLDEN_VECTORS,
        help="folder of golden vectors: MANIFEST.json and one folder a family (default: tests/golden/vectors)",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: left to the end, they would run while the other processes have nothing to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What is imported by now stays: looking through it again and again would take a good part of the tests' time."""
    gc.freeze()
    gc.set_threshold(20_000)
    gc.enable()
