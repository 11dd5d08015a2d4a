"""Fixtures of the script tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scripts.sandbox import ROOT, Sandbox


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


@pytest.fixture
def scripts() -> Callable[[], list[Path]]:
    """Every shell script of the repository."""
    return lambda: sorted([*ROOT.glob("cmd/*.sh"), *ROOT.glob("env_shell/*.sh"), ROOT / ".ci" / "run"])
