"""The stage cache: an artefact is built once, and only a whole one is ever reused."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.core.errors import ConfigError
from src.core.paths import MANIFEST, write_json
from src.pipeline.cache import STAGE, StageCache


class Builder:
    """Counts its calls; leaves a file that says which call wrote it."""

    def __init__(self, fail: bool = False) -> None:
        self.calls, self.fail = 0, fail

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "content").write_text(str(self.calls), encoding="utf-8")
        if self.fail:
            raise RuntimeError("power cut")
        write_json(folder / MANIFEST, {"call": self.calls})


def test_builds_once_and_reuses_also_in_a_later_process(tmp_path: Path) -> None:
    build = Builder()
    first = StageCache(tmp_path).stage("teacher", {"rank": 16}, build)
    later = StageCache(tmp_path)
    second = later.stage("teacher", {"rank": 16}, build)
    assert build.calls == 1
    assert (first.reused, second.reused) == (False, True)
    assert second.folder == first.folder == tmp_path / "teacher" / first.key
    assert second.seconds == first.seconds  # what building took, not what reusing took
    assert later.records == [second]


def test_a_changed_key_builds_another_and_keeps_the_first(tmp_path: Path) -> None:
    build, cache = Builder(), StageCache(tmp_path)
    first = cache.stage("teacher", {"rank": 16}, build)
    second = cache.stage("teacher", {"rank": 8}, build)
    assert build.calls == 2
    assert first.folder != second.folder
    assert (first.folder / "content").read_text() == "1"
    assert cache.stage("teacher", {"rank": 16}, build).reused


def test_the_name_is_part_of_the_key_unless_a_kind_is_shared(tmp_path: Path) -> None:
    build, cache = Builder(), StageCache(tmp_path)
    records = [cache.stage(name, {"x": 1}, build) for name in ("a", "b")]
    assert records[0].key != records[1].key
    shared = [cache.stage(name, {"x": 1}, build, kind="student") for name in ("student_baseline", "encoder")]
    assert shared[0].folder == shared[1].folder
    assert [record.name for record in shared] == ["student_baseline", "encoder"]
    assert build.calls == 3


@pytest.mark.parametrize("damage", [MANIFEST, STAGE])
def test_an_unfinished_folder_is_built_again(tmp_path: Path, damage: str) -> None:
    build, cache = Builder(), StageCache(tmp_path)
    folder = cache.stage("teacher", {}, build).folder
    (folder / damage).unlink()
    again = cache.stage("teacher", {}, build)
    assert not again.reused
    assert (folder / "content").read_text() == "2"
    assert cache.stage("teacher", {}, build).reused


def test_a_damaged_manifest_is_built_again(tmp_path: Path) -> None:
    build, cache = Builder(), StageCache(tmp_path)
    folder = cache.stage("teacher", {}, build).folder
    (folder / MANIFEST).write_text('{"call": 1', encoding="utf-8")
    assert not cache.stage("teacher", {}, build).reused
    assert build.calls == 2


def test_a_crash_while_building_leaves_nothing(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    with pytest.raises(RuntimeError, match="power cut"):
        cache.stage("teacher", {}, Builder(fail=True))
    assert list((tmp_path / "teacher").iterdir()) == []
    assert cache.records == []


def test_a_crash_while_rebuilding_keeps_what_was_there(tmp_path: Path) -> None:
    folder = StageCache(tmp_path).stage("teacher", {}, Builder()).folder
    with pytest.raises(RuntimeError, match="power cut"):
        StageCache(tmp_path, reuse=False).stage("teacher", {}, Builder(fail=True))
    assert (folder / "content").read_text() == "1"
    assert [entry.name for entry in (tmp_path / "teacher").iterdir()] == [folder.name]
    assert StageCache(tmp_path).stage("teacher", {}, Builder()).reused


def test_without_reuse_everything_is_built_again(tmp_path: Path) -> None:
    build = Builder()
    StageCache(tmp_path).stage("teacher", {}, build)
    record = StageCache(tmp_path, reuse=False).stage("teacher", {}, build)
    assert not record.reused
    assert (record.folder / "content").read_text() == "2"


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"runtime.cache = .*file.*cannot be written"):
        StageCache(tmp_path / "file").check()
    with pytest.raises(ConfigError, match="runtime.cache"):
        StageCache(tmp_path / "file" / "below").stage("teacher", {}, Builder())
