"""A search follows its data: another place of the same content is the same search, other content is another one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from src.cli.entry import Entry, Work
from src.cli.resume import RESUMABLE
from src.core.logging import log_to
from src.pipeline.run_folder import RunFolder
from src.tuning import student_search
from src.tuning.identity import searched_content
from src.tuning.journal import open_journal
from src.tuning.preflight import PreparedSearch, check_resumed
from src.tuning.search import first_trials, open_search
from src.tuning.search_settings import SearchSettings
from src.tuning.stage_search import alone_with_baseline
from src.tuning.study import SEARCH

SMALL = [
    "dataset=recbole", "dataset.name=toys", "dataset.root=a", "dataset.min_users=2", "dataset.min_items=2",
    "student.width=8", "student.loop.epochs=1", "runtime.device=cpu", "trials=1", "hydra.run.dir=found",
]  # fmt: skip


def open_study(settings: SearchSettings, prepared: PreparedSearch, folder: RunFolder) -> None:
    """A search without its trials: everything up to the study that knows what it is."""
    stages = prepared.stages
    with alone_with_baseline(settings, stages, folder, "student"):
        experiment, space = stages.settings, prepared.space
        first, content = first_trials(settings, experiment, space), searched_content("student", stages, {})
        storage, tuning = open_journal(folder.path), settings.tuning
        search = open_search(storage, experiment, tuning, content, SEARCH, space, first, lambda trial: {}, 1, 1)
        search.record.ask()


def work() -> Work[SearchSettings, PreparedSearch]:
    """As that of `tune_student`, without trials."""
    return Work(student_search.check, open_study, check_resumed)


ENTRY = Entry("tune_student", "tune_student", "A search.", SearchSettings, work, RESUMABLE)


def write_data(folder: Path, first_item: int = 0) -> None:
    """Twenty users who walk through twelve items."""
    folder.mkdir()
    rows = [
        f"u{user}\ti{(user + step + first_item) % 12}\t{100 * user + step}" for user in range(20) for step in range(8)
    ]
    (folder / "toys.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]) + "\n")


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a search over data in `a`."""
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "a")
    assert ENTRY.execute(SMALL) == 0
    yield tmp_path / "found"
    log_to(None)


def test_a_search_follows_its_data(found: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (found / "study.journal").read_bytes()
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "data" / "cache").rename(tmp_path / "elsewhere")
    assert ENTRY.execute([f"resume={found}"]) == 2
    assert "toys.inter" in capfd.readouterr().out
    assert ENTRY.execute([f"resume={found}", "dataset.root=b", "runtime.cache=elsewhere", "trials=2"]) == 0
    assert (found / "study.journal").read_bytes().startswith(before)
    assert "student_baseline: reused" in (found / "run.log").read_text()


def test_other_data_are_refused_before_anything_is_trained(
    found: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path / "b", first_item=1)
    cached = sorted((tmp_path / "data" / "cache").rglob("*"))
    before = {file: file.read_bytes() for file in found.rglob("*") if file.is_file()}
    assert ENTRY.execute([f"resume={found}", "dataset.root=b", "trials=2"]) == 2
    assert "was started with another dataset" in capfd.readouterr().out
    assert {file: file.read_bytes() for file in found.rglob("*") if file.is_file()} == before
    assert sorted((tmp_path / "data" / "cache").rglob("*")) == cached
