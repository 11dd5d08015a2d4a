"""The real driver of a search whose trials train eight at once, killed: the same trials as without."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from src.core.paths import MANIFEST
from tests.exp.driver import ONE_AT_A_TIME, SMALL, end, finish, records, stopped, trained_epochs, trial_table

TRIALS, EPOCHS = 9, 4  # trial 0 is alone, the others are one population
#: numbers alone, so that all trials are of one form
SPACE = """
stage: student
metric: ndcg_20
direction: maximize
parameters:
  student.learning_rate: {type: float, low: 1.0e-3, high: 1.0e-2, log: true}
  student.dropout: {type: float, low: 0.1, high: 0.5}
"""
#: which trial is stopped, and what is drawn after others, would follow from the order in which values come
ARGUMENTS = [
    *SMALL, ONE_AT_A_TIME, "tuning.population=8", "tuning.sampler=random", "tuning.pruner=none", "tuning.finalists=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of the command: with the search space, and one cache, so that the baseline is trained once."""
    place = tmp_path_factory.mktemp("common")
    (place / "numbers.yaml").write_text(SPACE, encoding="utf-8")
    return [*ARGUMENTS, f"tuning.search_space={place / 'numbers.yaml'}", f"runtime.cache={place / 'cache'}"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, arguments: list[str]) -> Path:
    """A result folder of a search that nobody disturbed."""
    place = tmp_path_factory.mktemp("whole")
    assert finish(place, *arguments, f"trials={TRIALS}", "hydra.run.dir=found") == 0, (place / "out.txt").read_text()
    assert len(trained_epochs(place / "found")) == TRIALS * EPOCHS
    return place / "found"


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [
        pytest.param(0.35, marks=pytest.mark.nightly, id="the population begins"),
        pytest.param(0.6, id="in its middle"),
        pytest.param(0.85, marks=pytest.mark.nightly, id="near its end"),
    ],
)
def test_sigkill_and_resume(uninterrupted: Path, arguments: list[str], tmp_path: Path, part: float) -> None:
    found = tmp_path / "found"
    driver = stopped(found, int(part * records(uninterrupted)), TRIALS, *arguments)
    end(driver, signal.SIGKILL)
    assert not (found / MANIFEST).exists()
    assert finish(tmp_path, f"resume={found}") == 0, (tmp_path / "out.txt").read_text()
    drawn, whole = trial_table(found), trial_table(uninterrupted)
    assert [row[:2] for row in drawn] == [(number, "COMPLETE") for number in range(TRIALS)]
    assert drawn[0] == whole[0]  # alone, so to the last bit
    for ours, theirs in zip(drawn, whole, strict=True):
        assert ours[3] == theirs[3]
        # other members stand beside it after the kill: the same sums, rounded in another way
        assert ours[2] == pytest.approx(theirs[2], abs=5e-3)
        assert ours[4] == pytest.approx(theirs[4], abs=5e-3)
    epochs = trained_epochs(found)
    assert sorted(set(epochs)) == sorted(set(trained_epochs(uninterrupted)))
    # a worker outlives its driver for a moment: at most the epoch that it was in is trained again, by each member
    assert len(epochs) - len(set(epochs)) <= 8
