"""The data benchmark at a small size: every step runs in its own process and gives its figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.data_at_scale import STEPS, Size, main, write_log
from src.data.adapters import find_adapter
from src.data.interactions import Interactions
from src.data.settings import DatasetSettings

SMALL = Size(6_000, 150, 60)


@pytest.mark.parametrize("form", ["csv", "tsv", "csv.gz", "csv.zst", "parquet"])
def test_the_synthetic_log_has_the_size_that_was_asked_for(form: str, tmp_path: Path) -> None:
    path = write_log(tmp_path, SMALL, form)
    settings = DatasetSettings(adapter="table", root=tmp_path, name="log", interactions_file=path.name)
    source = find_adapter("table").load(settings)
    assert isinstance(source, Interactions)
    assert (len(source.users), source.num_users, source.id_map.num_items) == (6_000, 150, 60)


@pytest.mark.nightly
def test_every_step_is_measured_in_a_process_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = main(["--interactions", "6000", "--users", "150", "--items", "60", "--folder", str(tmp_path)])
    assert [row["step"] for row in rows] == list(STEPS)
    assert all(row["peak_mb"] >= row["imports_mb"] > 0 for row in rows)
    assert '"interactions": 6000' in capsys.readouterr().out
