"""The real driver, ended and killed: nothing lost, nothing trained twice, the same trials as without."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from src.core.paths import MANIFEST
from src.exp.tune_student import ENTRY
from tests.exp.driver import ONE_AT_A_TIME, PATIENCE, SMALL, end, finish, records, stopped, trained_epochs, trial_table
from tests.pipeline.test_tracking import points

TRIALS = 6
ARGUMENTS = [*SMALL, ONE_AT_A_TIME, "runtime.cache=cache"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result folder of a search that nobody disturbed."""
    place = tmp_path_factory.mktemp("whole")
    arguments = [*ARGUMENTS, f"trials={TRIALS}", "hydra.run.dir=found"]
    assert finish(place, *arguments) == 0, (place / "out.txt").read_text()
    # students that nobody teaches and that read no texts: no language model is built or read
    assert {path.name for path in (place / "cache").iterdir()} == {"closed_form", "locks", "prior", "student"}
    return place / "found"


def survivors(children: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in children if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def end_by(number: signal.Signals, code: int, found: Path) -> None:
    """Begin a search of four trials, and end it in its middle by a signal that it can answer."""
    driver = stopped(found, 12, 4, *ARGUMENTS)
    children = psutil.Process(driver.pid).children(recursive=True)
    assert end(driver, number) == code
    text = (found.parent / "out.txt").read_text()
    assert f"paused: {'terminated' if number == signal.SIGTERM else 'interrupted'}" in text
    assert f"tune_student resume={found}" in text
    assert "Traceback" not in text
    _, alive = psutil.wait_procs(children, timeout=PATIENCE)
    assert alive == []


def require_as_if_nothing_had_happened(found: Path, uninterrupted: Path, ends: int) -> None:
    """The same trials, examples and curves; of each of its earlier ends at most an epoch is trained twice."""
    assert trial_table(found) == trial_table(uninterrupted)
    examples = [(folder / "metrics" / "examples.json").read_bytes() for folder in (found, uninterrupted)]
    assert examples[0] == examples[1]
    for number in range(TRIALS):
        drawn, whole = (points(folder / "tb" / f"trial_{number:04d}") for folder in (found, uninterrupted))
        assert drawn["validation/ndcg_20"] == whole["validation/ndcg_20"]
        steps = [(name, step) for name, curve in drawn.items() for step, _ in curve]
        assert len(steps) == len(set(steps))
    epochs = trained_epochs(found)
    assert len(epochs) >= TRIALS
    assert sorted(set(epochs)) == sorted(set(trained_epochs(uninterrupted)))
    # a worker outlives its driver for a moment
    assert len(epochs) - len(set(epochs)) <= ends
    assert [path.name for path in (found / "trials").iterdir() if not path.name.isdigit()] == ["finalists"]


@pytest.mark.slow
def test_terminated_then_given_more_trials_then_killed(
    uninterrupted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = tmp_path / "found"
    end_by(signal.SIGTERM, 143, found)
    driver = stopped(found, records(found) + 1, TRIALS)
    children = psutil.Process(driver.pid).children(recursive=True)
    end(driver, signal.SIGKILL)
    assert not (found / MANIFEST).exists()
    (found / "trials" / "scratch-of-a-killed-worker").mkdir()
    assert finish(tmp_path, f"resume={found}") == 0, (tmp_path / "out.txt").read_text()
    require_as_if_nothing_had_happened(found, uninterrupted, ends=2)
    assert survivors(children) == []
    told = [json.loads(line)["changes"] for line in (found / "resumes.jsonl").read_text().splitlines()]
    assert [len(changes) for changes in told] == [1, 0]
    # what is finished is finished
    assert ENTRY.execute([f"resume={found}"]) == 0
    assert "nothing is left to do" in " ".join(capfd.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.nightly
def test_killed_once(uninterrupted: Path, tmp_path: Path) -> None:
    found = tmp_path / "found"
    end(stopped(found, records(uninterrupted) // 4, TRIALS, *ARGUMENTS), signal.SIGKILL)
    assert finish(tmp_path, f"resume={found}") == 0, (tmp_path / "out.txt").read_text()
    require_as_if_nothing_had_happened(found, uninterrupted, ends=1)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_in_order_and_trials_can_be_added(
    uninterrupted: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    found = tmp_path / "found"
    end_by(number, code, found)
    assert finish(tmp_path, f"resume={found}", f"trials={TRIALS}") == 0
    require_as_if_nothing_had_happened(found, uninterrupted, ends=1)


@pytest.mark.slow
@pytest.mark.nightly
def test_a_killed_worker_costs_nothing(uninterrupted: Path, tmp_path: Path) -> None:
    found = tmp_path / "found"
    driver = stopped(found, 16, TRIALS, *ARGUMENTS)
    workers = [
        p for p in psutil.Process(driver.pid).children(recursive=True) if "ImplicitFunc" in " ".join(p.cmdline())
    ]
    assert workers
    for worker in workers:
        worker.kill()
    assert end(driver, signal.SIGCONT) == 0, (tmp_path / "out.txt").read_text()
    assert trial_table(found) == trial_table(uninterrupted)


@pytest.mark.slow
@pytest.mark.nightly
def test_a_full_disk_pauses_the_search_and_loses_nothing(uninterrupted: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs more rights than this process has")
    try:
        found, filler = disk / "found", disk / "filler"
        driver = stopped(found, 16, TRIALS, *ARGUMENTS)
        fill(filler)
        assert end(driver, signal.SIGCONT) == 1
        text = (disk / "out.txt").read_text()
        assert "No space left on device" in text or "the disk is full" in text
        assert f"resume={found}" in text
        assert "Traceback" not in text
        filler.unlink()
        assert finish(tmp_path, f"resume={found}") == 0, (tmp_path / "out.txt").read_text()
        assert trial_table(found) == trial_table(uninterrupted)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(path: Path) -> None:
    """Write until nothing more fits, by halving the pieces."""
    size = 2**20
    with path.open("ab", buffering=0) as handle:
        while size:
            try:
                handle.write(b"x" * size)
            except OSError:
                size //= 2


@pytest.mark.slow
def test_the_test_split_is_not_opened_a_second_time_without_being_asked(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = trial_table(uninterrupted)

    def refused(*arguments: str) -> str:
        assert ENTRY.execute([f"resume={uninterrupted}", *arguments]) == 2
        return " ".join(capfd.readouterr().out.split())

    monkeypatch.chdir(tmp_path)
    text = refused(f"trials={TRIALS + 1}")
    assert "was opened for this search at" in text
    assert "reopen_test=true" in text
    assert trial_table(uninterrupted) == before
    assert (uninterrupted / MANIFEST).exists()
    assert "is fixed" in refused("tuning.sampler=random")
    assert "is fixed" in refused("student.width=8")
    assert "may be raised" in refused(f"trials={TRIALS - 1}")
