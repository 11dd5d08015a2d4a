"""The table of populations against lone trials: what was measured is not measured again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import population_rate
from tests.gpu.pretended import PretendedGPU

SMALL = ["--items", "30", "--widths", "8", "--threads", "1", "--population", "1", "2", "--rounds", "1"]


def test_a_small_one_prints_a_table_and_goes_on_with_what_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, calls = [*SMALL, "--out", str(tmp_path / "lines.jsonl")], list[int]()
    monkeypatch.setattr(population_rate, "STEPS_OF_AN_EPOCH", 20)
    rates = population_rate.rates

    def counted(*arguments: Any, **named: Any) -> tuple[float, list[float]]:
        calls.append(named["batch"])
        return rates(*arguments, **named)

    monkeypatch.setattr(population_rate, "rates", counted)
    tables = []
    for batches in (["4"], ["4", "5"]):
        population_rate.main([*asked, "--batch", *batches])
        tables.append(capsys.readouterr().out.splitlines())
    assert calls == [4, 5]
    assert tables[0][2] == "| B | V | D | threads | lone trials | P = 1 | P = 2 |"
    assert tables[0][4:] == tables[1][4:5]
    assert [line.split(" | ")[0] for line in tables[1][4:]] == ["| 4", "| 5"]
    kept = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert [line["asked"]["batch"] for line in kept] == [4, 5]
    assert all(len(line["ratios"]) == 2 and min(line["ratios"]) > 0 for line in kept)


def test_it_runs_on_a_pretended_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with PretendedGPU() as gpu:
        population_rate.main([*SMALL, "--batch", "4", "--device", "cuda"])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("| 4 | 30 | 8 | 1 |")
    assert gpu.kernels["aten::uniform_"] > 0
