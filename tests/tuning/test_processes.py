"""What a killed driver left behind is ended; what a note in a folder only claims to be that is left alone."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from src.tuning import processes
from src.tuning.processes import end_survivors, forget_children, remember_children

NOTE = "processes.json"


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A scratch folder as a search makes it, with its mark."""
    folder, result = Path(tempfile.mkdtemp(prefix="anyo-")), Path(tempfile.mkdtemp())
    remember_children(result, folder)
    shutil.rmtree(result)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def sleepers() -> Iterator[list[psutil.Popen]]:
    """Processes of a test, ended with it."""
    started: list[psutil.Popen] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=10)


def sleeper(sleepers: list[psutil.Popen], *words: str) -> psutil.Popen:
    """A process that waits, with these words on its command line."""
    code = "import sys; print('ready', flush=True); sys.stdin.read()"
    process = psutil.Popen([sys.executable, "-c", code, *words], stdin=-1, stdout=-1)
    assert process.stdout.readline() == b"ready\n"
    sleepers.append(process)
    return process


def note(folder: Path, scratch: Path | str, mark: str, *processes: psutil.Popen) -> None:
    """A note as a driver leaves it, or as somebody prepared it."""
    children = [{"pid": process.pid, "started": process.create_time()} for process in processes]
    place = f"{folder.stat().st_dev}:{folder.stat().st_ino}"
    content = {"scratch": str(scratch), "mark": mark, "folder": place, "children": children}
    (folder / NOTE).write_text(json.dumps(content))


def mark_of(scratch: Path) -> str:
    return (scratch / ".anyo-search").read_text()


def test_survivors_are_ended_and_the_scratch_is_removed(
    tmp_path: Path, scratch: Path, sleepers: list[psutil.Popen]
) -> None:
    by_command = sleeper(sleepers, f"--session-dir={scratch}/ray")
    (scratch / "log").touch()
    with (scratch / "log").open() as handle:
        by_file = psutil.Popen(["cat"], stdin=-1, stdout=-1, pass_fds=[handle.fileno()])
    sleepers.append(by_file)
    other = sleeper(sleepers, "of the same driver, but not at work in its scratch")
    remember_children(tmp_path, scratch)
    assert end_survivors(tmp_path) == 2
    assert not psutil.pid_exists(by_command.pid)
    assert not psutil.pid_exists(by_file.pid)
    assert other.poll() is None
    assert not scratch.exists()
    assert not (tmp_path / NOTE).exists()
    assert end_survivors(tmp_path) == 0


def test_a_number_that_was_given_again_is_left_alone(
    tmp_path: Path, scratch: Path, sleepers: list[psutil.Popen]
) -> None:
    process = sleeper(sleepers, f"{scratch}/ray")
    note(tmp_path, scratch, mark_of(scratch), process)
    content = json.loads((tmp_path / NOTE).read_text())
    content["children"][0]["started"] = 1.0
    (tmp_path / NOTE).write_text(json.dumps(content))
    assert end_survivors(tmp_path) == 0
    assert process.poll() is None


def test_the_copy_of_a_live_search_leaves_its_workers_alone(
    tmp_path: Path, scratch: Path, sleepers: list[psutil.Popen]
) -> None:
    live, copy, moved = (tmp_path / name for name in ("live", "copy", "moved"))
    live.mkdir()
    process = sleeper(sleepers, f"--session-dir={scratch}/ray")
    remember_children(live, scratch)
    shutil.copytree(live, copy)
    assert end_survivors(copy) == 0
    assert process.poll() is None
    assert scratch.is_dir()
    assert not (copy / NOTE).exists()
    live.rename(moved)  # after a kill
    assert end_survivors(moved) == 1
    assert not scratch.exists()


def test_a_disk_with_another_number_after_a_restart_keeps_no_scratch_alive(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember_children(tmp_path, scratch)
    monkeypatch.setattr(processes, "_identity", lambda folder: "another device")
    assert end_survivors(tmp_path) == 0
    assert not scratch.exists()


@pytest.mark.parametrize(
    "claim", ["the user's folder", "another search's scratch", "a link", "no mark", "a place elsewhere"]
)
def test_a_prepared_note_ends_and_removes_nothing(
    tmp_path: Path, scratch: Path, sleepers: list[psutil.Popen], claim: str
) -> None:
    thesis = tmp_path / "anyo-thesis"
    thesis.mkdir()
    (thesis / "thesis.tex").write_text("ten years")
    named, mark = thesis, ""
    match claim:
        case "another search's scratch":
            named, mark = scratch, "0" * 32
        case "a link":
            named = scratch.with_name("anyo-link0000")
            named.symlink_to(thesis)
            (thesis / ".anyo-search").write_text("abc")
            mark = "abc"
        case "a place elsewhere":
            (thesis / ".anyo-search").write_text("abc")
            mark = "abc"
        case "no mark":
            named = scratch
            (scratch / ".anyo-search").unlink()
    try:
        process = sleeper(sleepers, f"{named}/thesis.tex")
        note(tmp_path, named, mark, process)
        assert end_survivors(tmp_path) == 0
        assert process.poll() is None
        assert (thesis / "thesis.tex").read_text() == "ten years"
        assert scratch.is_dir()
    finally:
        if claim == "a link":
            named.unlink()


@pytest.mark.parametrize(
    "content",
    ["nonsense", "[]", "{}", "null", '{"scratch": 3, "mark": "", "children": []}', '{"scratch": "/", "children": [7]}',
     '{"scratch": "/", "mark": "", "children": [{"pid": "1", "started": null}]}'],
)  # fmt: skip
def test_a_damaged_note_is_told_and_left(tmp_path: Path, content: Any) -> None:
    (tmp_path / NOTE).write_text(content)
    assert end_survivors(tmp_path) == 0
    assert (tmp_path / NOTE).read_text() == content


def test_an_orderly_end_leaves_no_note(tmp_path: Path, scratch: Path) -> None:
    remember_children(tmp_path, scratch)
    assert scratch.stat().st_mode & 0o077 == 0
    assert scratch.stat().st_uid == os.getuid()
    forget_children(tmp_path)
    assert not (tmp_path / NOTE).exists()
