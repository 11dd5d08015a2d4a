"""A search that is killed at any single journal record, whole or half written, ends as if it had not been."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from src.core.errors import ArtefactError, ConfigError
from src.core.result_files import JOURNAL
from src.pipeline.run_folder import single_driver
from src.tuning import journal
from src.tuning.journal import check, open_journal, repair
from src.tuning.search_space import CategoricalParameter, FloatParameter, IntParameter, SearchSpace
from src.tuning.settings import TuningSettings
from src.tuning.study import Record
from tests.tuning.killing import EPOCHS, SPACE, DyingBackend, Killed, Toy, table

FLOATS = {
    "distill.lam": FloatParameter(type="float", low=0.0, high=1.0),
    "distill.alpha": FloatParameter(type="float", low=0.0, high=0.5),
}
#: the one whose pruner writes records of its own is tried every time
RULES = [
    ("tpe", "asha"),
    *(
        pytest.param(*rule, marks=pytest.mark.nightly)
        for rule in [("tpe", "median"), ("tpe", "hyperband"), ("random", "asha")]
    ),
]


@pytest.fixture(autouse=True)
def dying(monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal dies when it is told to; a real disk's flush adds nothing to these tests but time."""
    monkeypatch.setattr(journal, "JournalFileBackend", DyingBackend)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    DyingBackend.at = DyingBackend.written = 0


def settings(sampler: str, pruner: str) -> TuningSettings:
    return TuningSettings(
        sampler=sampler, pruner=pruner, startup_trials=3, pruner_startup_trials=2, pruner_warmup_epochs=1,
        reduction_factor=2,
    )  # type: ignore[arg-type]  # fmt: skip


def killed_run(folder: Path, tuning: TuningSettings, at: int, partial: bool) -> tuple[Toy, Record]:
    """Killed at one record, then resumed."""
    toy = Toy(folder, tuning)
    DyingBackend.at, DyingBackend.partial, DyingBackend.written = at, partial, 0
    with pytest.raises(Killed):
        toy.run()
    DyingBackend.at = 0
    return toy, toy.run()


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "pruner"), RULES)
def test_killed_at_every_record(tmp_path: Path, sampler: str, pruner: str) -> None:
    tuning = settings(sampler, pruner)
    whole = Toy(tmp_path / "whole", tuning)
    expected = table(whole.run())
    records = DyingBackend.written
    states = [row[1] for row in expected]
    assert "PRUNED" in states, "without a pruned trial this test would not see a lost decision"
    assert "COMPLETE" in states
    for at in range(1, records + 1):
        # every record once, alternately whole and half written
        toy, record = killed_run(tmp_path / f"{at}", tuning, at, partial=at % 2 == 0)
        assert table(record) == expected, f"killed at record {at} of {records}"
        assert len(toy.trained) == len(set(toy.trained)), f"an epoch was trained twice after record {at}"
        assert set(toy.trained) == set(whole.trained)


def test_killed_at_every_partial_record_of_the_other_parity(tmp_path: Path) -> None:
    tuning = settings("random", "asha")
    expected = table(Toy(tmp_path / "whole", tuning).run(trials=4))
    records = DyingBackend.written
    for at in range(1, records + 1):
        toy = Toy(tmp_path / f"{at}", tuning)
        DyingBackend.at, DyingBackend.partial, DyingBackend.written = at, at % 2 == 1, 0
        with pytest.raises(Killed):
            toy.run(trials=4)
        DyingBackend.at = 0
        assert table(toy.run(trials=4)) == expected


def test_killed_again_while_resuming(tmp_path: Path) -> None:
    tuning = settings("tpe", "asha")
    expected = table(Toy(tmp_path / "whole", tuning).run())
    toy = Toy(tmp_path / "killed", tuning)
    DyingBackend.partial = True
    DyingBackend.at = 3  # every start gets two records further
    starts = 0
    record: Record | None = None
    while record is None:
        starts, DyingBackend.written = starts + 1, 0
        try:
            record = toy.run()
        except Killed:
            assert starts < 200
    assert starts > 20
    assert table(record) == expected


@pytest.mark.parametrize("sampler", ["cmaes", "tpe", "random"])
def test_every_sampler_proposes_the_same_after_a_kill_and_other_things_with_another_seed(
    tmp_path: Path, sampler: str
) -> None:
    space = SearchSpace("distill", {"ndcg_20": "maximize"}, {**FLOATS})
    tuning = settings(sampler, "none")
    whole = Toy(tmp_path / "whole", tuning, space=space)
    expected = table(whole.run(trials=10))
    assert len({str(row[3]) for row in expected}) == 10
    toy = Toy(tmp_path / "killed", tuning, space=space)
    DyingBackend.at, DyingBackend.partial, DyingBackend.written = 50, True, 0
    with pytest.raises(Killed):
        toy.run(trials=10)
    DyingBackend.at = 0
    assert table(toy.run(trials=10)) == expected
    other = Toy(tmp_path / "other", tuning, space=space, seed=8).run(trials=10)
    assert [row[3] for row in table(other)][1:] != [row[3] for row in expected][1:]


def test_trials_may_be_added_and_equal_a_search_that_was_larger_from_the_start(tmp_path: Path) -> None:
    tuning = settings("tpe", "median")
    expected = table(Toy(tmp_path / "whole", tuning).run(trials=9))
    toy = Toy(tmp_path / "raised", tuning)
    assert len(toy.run(trials=5).trials()) == 5
    assert table(toy.run(trials=9)) == expected


def test_a_grid_is_enumerated_exactly_once_also_when_it_was_killed(tmp_path: Path) -> None:
    space = SearchSpace(
        "distill",
        {"ndcg_20": "maximize"},
        {
            "distill.lam": CategoricalParameter(type="categorical", choices=[0.0, 0.5, 1.0]),
            "active.policy": CategoricalParameter(type="categorical", choices=["all", "kl_divergence"]),
            "active.kl_threshold": IntParameter(
                type="int", low=1, high=5, step=2, when={"active.policy": "kl_divergence"}
            ),
        },
    )
    points = space.grid()
    # 3 lam × (all + kl_divergence × 3 thresholds)
    assert len(points) == 12
    toy = Toy(tmp_path / "grid", settings("grid", "none"), space=space)
    DyingBackend.at, DyingBackend.partial = 40, True
    with pytest.raises(Killed):
        toy.run(trials=12)
    DyingBackend.at = 0
    record = toy.run(trials=12)
    assert [trial.params for trial in record.trials()] == points


# ------------------------------------------------------------------------------------------------ the file itself


def finished(folder: Path) -> Path:
    Toy(folder, settings("random", "none")).run(trials=3)
    return folder / JOURNAL


def test_every_cut_of_the_last_line_is_repaired(tmp_path: Path) -> None:
    path = finished(tmp_path / "a")
    content = path.read_bytes()
    last = content[:-1].rfind(b"\n") + 1
    for cut in range(last, len(content)):
        path.write_bytes(content[:cut])
        assert repair(path) == cut - last
        assert path.read_bytes() == content[:last]


def test_damage_in_the_middle_is_told_and_nothing_is_changed(tmp_path: Path) -> None:
    path = finished(tmp_path / "a")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[5] = lines[5][:10] + b"\x00garbage\n"
    damaged = b"".join(lines)
    path.write_bytes(damaged)
    with pytest.raises(ArtefactError, match=rf"line 6 of {len(lines)} is damaged; the 5 records before it are intact"):
        open_journal(path.parent)
    assert path.read_bytes() == damaged


def test_a_journal_of_another_search_is_refused(tmp_path: Path) -> None:
    path = finished(tmp_path / "a")
    with pytest.raises(ArtefactError, match="belongs to another search"):
        Record.open(open_journal(path.parent), "search", SPACE, settings("random", "none"), 7, EPOCHS, "other")


def test_one_driver_at_a_time(tmp_path: Path) -> None:
    refused = pytest.raises(ConfigError, match=rf"another search is running in it \(process {os.getpid()}\)")
    with single_driver(tmp_path), refused, single_driver(tmp_path):
        raise AssertionError
    with single_driver(tmp_path):
        pass


def test_a_stale_lock_of_optuna_does_not_block(tmp_path: Path) -> None:
    path = finished(tmp_path / "a")
    lock = path.with_name(f"{JOURNAL}.lock")
    os.symlink(path, lock)
    Record.open(open_journal(path.parent), "search", SPACE, settings("random", "none"), 7, EPOCHS, "identity").ask()
    assert not os.path.lexists(lock)
    assert check(path) > 0
