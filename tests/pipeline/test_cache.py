"""The stage cache: an artefact is built once, and only a whole one is ever reused."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from src.core import locks
from src.core.errors import ArtefactError, ConfigError
from src.core.paths import MANIFEST, write_json
from src.pipeline import cache as cache_module
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


@pytest.mark.parametrize("damage", [MANIFEST, STAGE, "content"])
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


def test_a_flipped_bit_is_told_set_aside_and_built_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build = Builder()
    folder = StageCache(tmp_path).stage("teacher", {}, build).folder
    (folder / "content").write_bytes(bytes([ord("1") ^ 1]))
    again = StageCache(tmp_path).stage("teacher", {}, build)
    assert (again.reused, (folder / "content").read_text()) == (False, "2")
    kept = tmp_path / "damaged" / f"teacher_{folder.name}"
    assert (kept / "content").read_text() == "0"
    assert "is damaged: its checksum is another" in caplog.text
    assert f"it is built again, and what was there is kept in {kept} until you remove it" in caplog.text
    assert StageCache(tmp_path).stage("teacher", {}, build).reused


@pytest.mark.parametrize("name", [MANIFEST, STAGE, "content"])
def test_no_flipped_bit_of_any_file_is_reused(tmp_path: Path, name: str) -> None:
    build = Builder()
    for at in range(0, 800, 13):
        folder = StageCache(tmp_path).stage("teacher", {"why": "it decides"}, build).folder
        content = bytearray((folder / name).read_bytes())
        content[at % len(content)] ^= 1 << (at % 8)
        (folder / name).write_bytes(bytes(content))
        assert not StageCache(tmp_path).stage("teacher", {"why": "it decides"}, build).reused


@pytest.mark.parametrize("content", ["[]", "{}", "null", "3", '{"files": null, "seconds": "x"}'])
def test_a_foreign_stage_file_is_no_find(tmp_path: Path, content: str) -> None:
    build = Builder()
    folder = StageCache(tmp_path).stage("teacher", {}, build).folder
    (folder / STAGE).write_text(content, encoding="utf-8")
    assert not StageCache(tmp_path).stage("teacher", {}, build).reused
    (folder / MANIFEST).write_text(content, encoding="utf-8")
    assert not StageCache(tmp_path).stage("teacher", {}, build).reused


def test_a_run_reads_an_artefact_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build, read = Builder(), list[Path]()
    StageCache(tmp_path).stage("teacher", {}, build)
    monkeypatch.setattr(cache_module, "verify_files", lambda folder, _: read.append(folder))
    cache = StageCache(tmp_path)
    assert [cache.stage("teacher", {}, build).reused for _ in range(3)] == [True] * 3
    assert len(read) == 1


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


@pytest.mark.parametrize("instead", ["a link to a disk that is not there", "a file"])
def test_what_is_no_folder_in_an_artefacts_place_makes_way(tmp_path: Path, instead: str) -> None:
    first = StageCache(tmp_path).stage("teacher", {}, Builder())
    shutil.rmtree(first.folder)
    if instead == "a file":
        first.folder.write_text("")
    else:
        first.folder.symlink_to(tmp_path / "gone")
    builder = Builder()
    for reused in (False, True):
        record = StageCache(tmp_path).stage("teacher", {}, builder)
        assert (record.reused, (record.folder / "content").is_file()) == (reused, True)
    assert builder.calls == 1


def test_what_was_set_aside_before_makes_way_and_a_link_there_leads_to_nothing_lost(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis").write_text("ten years")
    record = StageCache(tmp_path / "cache").stage("teacher", {}, Builder())
    kept = tmp_path / "cache" / "damaged" / f"teacher_{record.key}"
    kept.parent.mkdir()
    kept.symlink_to(tmp_path / "theirs")
    (record.folder / "content").write_text("damaged")
    assert not StageCache(tmp_path / "cache").stage("teacher", {}, Builder()).reused
    assert (kept / "content").read_text() == "damaged"
    assert (tmp_path / "theirs" / "thesis").read_text() == "ten years"


def test_without_reuse_everything_is_built_again(tmp_path: Path) -> None:
    build = Builder()
    StageCache(tmp_path).stage("teacher", {}, build)
    record = StageCache(tmp_path, reuse=False).stage("teacher", {}, build)
    assert not record.reused
    assert (record.folder / "content").read_text() == "2"


def test_finished_only_finds_and_builds_nothing(tmp_path: Path) -> None:
    build, cache = Builder(), StageCache(tmp_path)
    cache.stage("teacher", {"rank": 16}, build)
    with cache.finished_only():
        assert cache.stage("teacher", {"rank": 16}, build).reused
        with pytest.raises(ArtefactError, match="neither finished nor whole"):
            cache.stage("teacher", {"rank": 8}, build)
    assert len(list((tmp_path / "teacher").iterdir())) == 1
    assert not cache.stage("teacher", {"rank": 8}, build).reused


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"runtime.cache = .*file.*cannot be written"):
        StageCache(tmp_path / "file").check()
    with pytest.raises(ConfigError, match="runtime.cache"):
        StageCache(tmp_path / "file" / "below").stage("teacher", {}, Builder())


# ----------------------------------------------------------------------------------------------- several processes


def build_when_told(root: Path, pipe: Connection) -> None:
    """In a process of its own: build the stage, say when it has begun, end it when told."""

    def build(folder: Path) -> None:
        Builder()(folder)
        pipe.send("begun")
        pipe.recv()

    StageCache(root).stage("teacher", {}, build)
    pipe.send("published")


class OnWaiting(logging.Handler):
    """Does something when it is said that a stage is being waited for."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.act, self.said = act, list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        """Look for it."""
        if "waiting" in record.getMessage():
            self.said.append(record.getMessage())
            self.act()


@pytest.fixture
def builder(tmp_path: Path) -> Iterator[tuple[BaseProcess, Connection]]:
    """Another process that is building, and the pipe to it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=build_when_told, args=(tmp_path, there))
    process.start()
    there.close()
    assert here.recv() == "begun"
    yield process, here
    process.kill()
    process.join()


@contextmanager
def on_waiting(act: Callable[[], object]) -> Iterator[OnWaiting]:
    """While this lasts, ``act`` is called when a wait begins."""
    handler, log = OnWaiting(act), logging.getLogger("src.pipeline.cache")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def test_one_process_builds_and_the_other_waits_and_says_so(
    tmp_path: Path, builder: tuple[BaseProcess, Connection]
) -> None:
    process, pipe = builder
    build = Builder()
    with on_waiting(lambda: pipe.send("go on")) as waited:
        record = StageCache(tmp_path).stage("teacher", {}, build)
    assert (record.reused, build.calls) == (True, 0)
    assert len(waited.said) == 1
    assert f"process {process.pid} on " in waited.said[0]
    assert pipe.recv() == "published"
    assert list((tmp_path / "locks").iterdir()) == []


def test_who_waited_for_a_process_that_was_killed_builds_itself(
    tmp_path: Path, builder: tuple[BaseProcess, Connection]
) -> None:
    process, _ = builder
    build = Builder()
    with on_waiting(process.kill):
        record = StageCache(tmp_path).stage("teacher", {}, build)
    assert (record.reused, build.calls) == (False, 1)
    assert [entry.name for entry in (tmp_path / "teacher").iterdir()] == [record.key]  # what it had begun is gone


def test_without_locks_the_first_of_two_artefacts_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    first, second = Builder(), Builder()

    def build(folder: Path) -> None:
        second(folder)
        StageCache(tmp_path).stage("teacher", {}, first)
        (folder / "content").write_text("later", encoding="utf-8")

    record = StageCache(tmp_path).stage("teacher", {}, build)
    assert (first.calls, second.calls) == (1, 1)
    assert (record.folder / "content").read_text() == "1"
    assert [entry.name for entry in (tmp_path / "teacher").iterdir()] == [record.key]
