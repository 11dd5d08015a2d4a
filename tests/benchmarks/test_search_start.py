"""What a search costs: a command that fails is no measurement."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import search_start
from benchmarks.search_start import busy_seconds, run_cost


def test_a_search_that_fails_is_told(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    with pytest.raises(RuntimeError, match="exit code 1: .*No module named 'src'"):
        run_cost(tmp_path, tmp_path / "place", "first")


def test_the_cost_of_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_start, "COMMAND", [search_start.COMMAND[0], "-c", "sum(range(3_000_000))"])
    before = busy_seconds()
    cost = run_cost(tmp_path, tmp_path, "first")
    assert 0 < cost.cpu <= busy_seconds() - before
    assert cost.wall > 0
