"""The benchmarks of what is served run at a small size, and print what they measured."""

from __future__ import annotations

import pytest

from benchmarks import index_recall, recommend_rate, serve_load

pytestmark = pytest.mark.slow


def test_recommend_rate(capsys: pytest.CaptureFixture[str]) -> None:
    recommend_rate.main(["--items", "50", "--users", "40", "--width", "8", "--batch", "16", "32"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "transformer, 50 items" in line]
    assert [line.partition(": 40 users")[0] for line in lines] == [
        "transformer, 50 items, batches of 16", "transformer, 50 items, batches of 32",
    ]  # fmt: skip


def test_serve_load(capsys: pytest.CaptureFixture[str]) -> None:
    serve_load.main(["--items", "120", "--requests", "20", "--clients", "2", "--bad", "40", "--width", "8"])
    said = capsys.readouterr().out
    assert "120 items, 2 clients, 20 requests: p50" in said
    assert "40 bad requests at once: {200: " in said or "40 bad requests at once: {4" in said


def test_index_recall(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("usearch")
    index_recall.main(["--items", "60", "--users", "30", "--width", "8", "--k", "3", "--effort", "80"])
    # more effort than there are items: all is found
    assert "recall@3 1.0000" in capsys.readouterr().out
