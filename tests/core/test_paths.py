"""Every write is whole or absent; every run has a folder of its own."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from src.core import paths
from src.core.documents import read_json_document
from src.core.errors import ArtefactError, ConfigError
from src.core.paths import (
    MANIFEST,
    atomic_folder,
    disk_is_full,
    require_finished,
    reserve_folder,
    write_bytes,
    write_json,
    write_text,
)


class _Crash(Exception):
    pass


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_replaces_the_whole_content(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file.txt"
    write_text(file, "a long first content")
    write_text(file, "short: é")
    assert file.read_text(encoding="utf-8") == "short: é"
    assert _names(file.parent) == ["file.txt"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    file = tmp_path / "file.bin"
    write_bytes(file, b"old")

    def crash(*arguments: object) -> None:
        raise _Crash

    monkeypatch.setattr(os, step, crash)
    with pytest.raises(_Crash):
        write_bytes(file, b"new")
    assert file.read_bytes() == b"old"
    assert _names(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_that_no_other_reader_understands_is_not_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file.json", {"x": value})
    assert _names(tmp_path) == []


def test_json_round_trip_keeps_order_and_text(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"b": 1, "a": "日本"})
    assert list(read_json_document(tmp_path / "file.json").items()) == [("b", 1), ("a", "日本")]
    assert "日本" in (tmp_path / "file.json").read_text(encoding="utf-8")


def test_missing_and_damaged_json_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="is missing"):
        read_json_document(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"a": ', encoding="utf-8")
    with pytest.raises(ArtefactError, match="not valid JSON"):
        read_json_document(tmp_path / "half.json")


def test_atomic_folder_appears_only_when_it_is_filled(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("1", encoding="utf-8")
        assert not target.exists()
    assert _names(target) == ["a"]
    assert _names(tmp_path) == ["out"]


def test_a_crash_while_filling_keeps_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_folder(target) as folder:
        (folder / "old").write_text("1", encoding="utf-8")

    def fill_and_crash() -> None:
        with atomic_folder(target) as folder:
            (folder / "new").write_text("2", encoding="utf-8")
            raise _Crash

    with pytest.raises(_Crash):
        fill_and_crash()
    assert _names(target) == ["old"]
    assert _names(tmp_path) == ["out"]


def test_a_filled_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for name in ("old", "new"):
        with atomic_folder(target) as folder:
            (folder / name).write_text(name, encoding="utf-8")
    assert _names(target) == ["new"]
    assert _names(tmp_path) == ["out"]


class Racing:
    """`os.rename` before whose first call on ``target`` another process is quicker."""

    def __init__(self, quicker: Callable[[], object]) -> None:
        self.quicker, self.rename, self.raced = quicker, os.rename, False

    def __call__(self, source: Path, target: Path) -> None:
        """As `os.rename`."""
        if not self.raced:
            self.raced = True
            self.quicker()
        self.rename(source, target)


def _publish(target: Path, content: str) -> None:
    target.mkdir()
    (target / content).write_text(content, encoding="utf-8")


@pytest.mark.parametrize(("replace", "stays"), [(True, "mine"), (False, "theirs")])
def test_a_folder_that_appears_at_the_last_moment_costs_nobodys_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool, stays: str
) -> None:
    target = tmp_path / "out"
    monkeypatch.setattr(os, "rename", Racing(lambda: _publish(target, "theirs")))
    with atomic_folder(target, replace) as folder:
        (folder / "mine").write_text("1", encoding="utf-8")
    assert _names(target) == [stays]
    assert _names(tmp_path) == ["out"]


def test_a_folder_that_another_process_takes_away_at_the_last_moment_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    _publish(target, "old")
    monkeypatch.setattr(os, "rename", Racing(lambda: shutil.rmtree(target)))
    with atomic_folder(target) as folder:
        (folder / "mine").write_text("1", encoding="utf-8")
    assert _names(target) == ["mine"]
    assert _names(tmp_path) == ["out"]


@pytest.mark.parametrize(("replace", "stays"), [(True, "outer"), (False, "inner")])
def test_of_two_that_fill_one_folder_the_later_wins_or_the_first(tmp_path: Path, replace: bool, stays: str) -> None:
    target = tmp_path / "out"
    with atomic_folder(target, replace) as outer:
        (outer / "outer").write_text("", encoding="utf-8")
        with atomic_folder(target, replace) as inner:
            (inner / "inner").write_text("", encoding="utf-8")
    assert _names(target) == [stays]
    assert _names(tmp_path) == ["out"]


def test_a_symbolic_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    other, link = tmp_path / "other", tmp_path / "link"
    other.mkdir()
    (other / "file").write_text("somebody else's", encoding="utf-8")
    link.symlink_to(other / "file")
    write_text(link, "mine")
    assert ((other / "file").read_text(), link.read_text(), link.is_symlink()) == ("somebody else's", "mine", False)

    link.unlink()
    link.symlink_to(other)
    with atomic_folder(link) as folder:
        (folder / "mine").write_text("", encoding="utf-8")
    assert (_names(other), _names(link), link.is_symlink()) == (["file"], ["mine"], False)


def test_a_link_that_leads_nowhere_is_replaced_too(tmp_path: Path) -> None:
    for name in ("file", "folder"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    write_text(tmp_path / "file", "mine")
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "mine").write_text("", encoding="utf-8")
    assert (_names(tmp_path), _names(tmp_path / "folder")) == (["file", "folder"], ["mine"])


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    name = "x" * os.pathconf(tmp_path, "PC_NAME_MAX")
    write_text(tmp_path / name, "content")
    assert (tmp_path / name).read_text() == "content"


def test_what_is_published_can_be_read_by_everybody(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("")
    (tmp_path / "theirs").chmod(0o600)
    with atomic_folder(tmp_path / "out") as target:
        (target / "inner").mkdir(mode=0o700)
        (target / "inner" / "weights").write_text("")
        (target / "inner" / "weights").chmod(0o600)  # as safetensors leaves it
        (target / "link").symlink_to(tmp_path / "theirs")
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("out", "out/inner", "out/inner/weights")]
    assert modes == [0o755, 0o755, 0o644]
    assert (tmp_path / "theirs").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_the_file_that_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="file.bin") as caught:
        write_bytes(tmp_path / "file.bin", b"content")
    assert caught.value.filename == str(tmp_path / "file.bin")
    assert disk_is_full(caught.value)
    assert _names(tmp_path) == []


def test_other_errors_are_no_full_disk(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match=str(tmp_path / "file" / "below")) as caught:
        write_text(tmp_path / "file" / "below", "")
    assert not disk_is_full(caught.value)
    assert not disk_is_full(ValueError("No space left on device"))


def test_a_disk_that_fills_while_a_folder_is_copied_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"w")

    def fill(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", target)

    with pytest.raises(shutil.Error) as caught:
        shutil.copytree(tmp_path / "model", tmp_path / "copy", copy_function=fill)
    assert disk_is_full(caught.value)
    assert not disk_is_full(shutil.Error([("a", "b", "[Errno 13] Permission denied: 'b'")]))


def test_what_is_written_outlives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is on disk before it takes its name, and the folder that holds the name after."""
    events = list[str]()
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def synced(descriptor: int) -> None:
        events.append(f"sync {'folder' if stat.S_ISDIR(os.fstat(descriptor).st_mode) else 'file'}")
        fsync(descriptor)

    def moved(move: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        def event(source: Path, target: Path) -> None:
            events.append("name")
            move(source, target)

        return event

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", moved(replace))
    monkeypatch.setattr(os, "rename", moved(rename))
    write_bytes(tmp_path / "file", b"content")
    assert events == ["sync file", "name", "sync folder"]
    events.clear()
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1", encoding="utf-8")
    assert events == ["sync file", "sync folder", "name", "sync folder"]


def test_two_runs_of_the_same_second_get_their_own_folders(tmp_path: Path) -> None:
    wanted = tmp_path / "result" / "result_20250101_000000"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: reserve_folder(wanted), range(8)))
    assert len(set(found)) == 8
    assert {path.name for path in found} == {wanted.name, *(f"{wanted.name}_{n}" for n in range(2, 9))}
    assert all(path.is_dir() for path in found)


def test_a_result_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="choose a writable folder"):
        reserve_folder(tmp_path / "file" / "result")


def test_a_folder_without_a_manifest_is_unfinished(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="does not exist"):
        require_finished(tmp_path / "none")
    with pytest.raises(ArtefactError, match="did not finish"):
        require_finished(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({"kind": "x"}), encoding="utf-8")
    assert require_finished(tmp_path) == {"kind": "x"}


def test_the_repository_is_where_the_sources_are() -> None:
    assert (paths.REPOSITORY / "src" / "core" / "paths.py").is_file()
