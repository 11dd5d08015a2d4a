"""Where a Ray of this machine finds room, as machines are: long, foreign or missing folders, odd paths, a set shell."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import ray
import torch

from src.core.errors import ConfigError, Paused
from src.tuning import ray_place, ray_session
from src.tuning.ray_place import (
    check_place,
    environment,
    interpreter,
    offered_gpus,
    private_token,
    scratch_folder,
    session_environment,
)
from src.tuning.settings import RaySettings


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """TMPDIR may be set; Python asks for it once only."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    return monkeypatch


def made(monkeypatch: pytest.MonkeyPatch, folder: Path | str) -> Path:
    monkeypatch.setenv("TMPDIR", str(folder))
    scratch = scratch_folder()
    assert stat.S_IMODE(scratch.stat().st_mode) == 0o700
    assert list(scratch.iterdir()) == []
    scratch.rmdir()
    return scratch.parent


def test_the_users_own_place_is_taken_where_it_is_short_enough(temporary: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        assert made(temporary, folder) == Path(folder)


def test_sockets_go_elsewhere_where_the_place_is_too_long(temporary: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 110)
    long.mkdir()
    assert made(temporary, long) == Path("/tmp")
    assert list(long.iterdir()) == []
    assert check_place() == []


@pytest.mark.parametrize("folder", ["/sys/fs", "/nowhere"])
def test_a_place_that_is_not_there_or_cannot_be_written(temporary: pytest.MonkeyPatch, folder: str) -> None:
    assert made(temporary, folder) == Path("/tmp")


def test_no_place_at_all_is_told_before_anything_is_trained(temporary: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 110)
    long.mkdir()
    temporary.setattr(ray_place, "_bases", lambda: [long, Path("/sys/fs")])
    temporary.setenv("TMPDIR", str(long))
    (problem,) = check_place()
    assert (problem.field, problem.value) == ("TMPDIR", str(long))
    assert "is too long; /sys/fs cannot be written" in problem.rule
    assert "at most 24 characters" in problem.next_step
    with pytest.raises(ConfigError, match="no folder for Ray's sockets"):
        ray_session.check_ray(RaySettings(), dashboard=False)


# ------------------------------------------------------------------------------------------------------------ the token


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "ray" / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    return path


def test_rays_token_is_the_users_alone(token: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert private_token(tmp_path) == token
    content = token.read_text()
    assert (stat.S_IMODE(token.stat().st_mode), len(content)) == (0o600, 64)
    token.chmod(0o644)
    assert private_token(tmp_path) == token
    assert (stat.S_IMODE(token.stat().st_mode), token.read_text()) == (0o600, content)
    assert [file.name for file in token.parent.iterdir()] == ["token"]
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert private_token(tmp_path) is None
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    assert private_token(tmp_path) is None


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_token_is_made_anew(token: Path, tmp_path: Path, content: str) -> None:
    token.parent.mkdir()
    token.write_text(content)
    assert private_token(tmp_path) == token
    assert len(token.read_text()) == 64


@pytest.mark.parametrize("content", ["café", "ab\x01cd", "ab\tcd", "\udcff"])
def test_a_token_that_would_end_rays_processes_is_not_used(token: Path, tmp_path: Path, content: str) -> None:
    """Each of these ends the process that starts Ray, with "ASSERTION FAILED" and no exception."""
    token.parent.mkdir()
    token.write_bytes(os.fsencode(content))
    assert private_token(tmp_path) == tmp_path / "token"
    assert token.read_bytes() == os.fsencode(content)


@pytest.mark.parametrize("content", ["abc\n", "ab cd\r\n", "one\nanother"])
def test_a_token_as_an_editor_saves_it_is_one(token: Path, tmp_path: Path, content: str) -> None:
    token.parent.mkdir()
    token.write_text(content)
    assert private_token(tmp_path) == token


@pytest.mark.parametrize(("content", "told"), [("ab\ncd", True), ("ab\tcd", True), ("abcd\n", False), ("", False)])
def test_a_token_in_the_shell_is_looked_at_before_anything_is_trained(
    token: Path, monkeypatch: pytest.MonkeyPatch, content: str, told: bool
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", content)
    problems = check_place()
    assert [problem.field for problem in problems] == ["RAY_AUTH_TOKEN"] * told
    assert all("ab" not in str(problem.value) for problem in problems)


@pytest.mark.parametrize("named", ["/sys/fs/ray/token", ""])
def test_a_home_that_cannot_be_written_leaves_the_token_beside_the_sockets(
    token: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", named)
    monkeypatch.setenv("HOME", "/sys/fs")
    path = private_token(tmp_path)
    assert path == tmp_path / "token"
    assert (stat.S_IMODE(path.stat().st_mode), len(path.read_text())) == (0o600, 64)
    assert session_environment(tmp_path, path)["RAY_AUTH_TOKEN_PATH"] == str(path)


# ------------------------------------------------------------------------------------------------------ the environment


def test_another_ray_in_the_shell_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.delenv("RAY_NAMESPACE", raising=False)
    with environment({"RAY_TMPDIR": "/tmp/mine", "NEW": "1"}):
        assert "RAY_ADDRESS" not in os.environ
        assert (os.environ["RAY_TMPDIR"], os.environ["NEW"]) == ("/tmp/mine", "1")
    assert os.environ["RAY_ADDRESS"] == "10.0.0.1:6379"
    assert not {"NEW", "RAY_TMPDIR", "RAY_NAMESPACE"} & set(os.environ)


@pytest.mark.parametrize("folder", ["/a/my project", "/a (copy)", "/it's", '/a "b"', "/a;b&c$d"])
def test_a_python_with_an_odd_path_is_quoted(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setattr(sys, "executable", f"{folder}/.venv/bin/python")
    (quoted,) = interpreter().values()
    said = subprocess.run(["bash", "-c", f"printf %s {quoted}"], capture_output=True, text=True, check=True).stdout
    assert said == sys.executable
    assert shlex.split(quoted) == [sys.executable]


def test_a_plain_path_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/work/.venv/bin/python")
    assert interpreter() == {}


@pytest.mark.parametrize(
    ("device", "visible", "offered"),
    [
        ("cpu", None, (0, {})),
        ("auto", None, (2, {})),
        ("cuda", None, (2, {})),
        ("cuda:0", None, (1, {"CUDA_VISIBLE_DEVICES": "0"})),
        ("cuda:1", None, (1, {"CUDA_VISIBLE_DEVICES": "1"})),
        ("cuda:1", "5,7", (1, {"CUDA_VISIBLE_DEVICES": "7"})),
        ("cuda:0", "GPU-1f2e", (1, {"CUDA_VISIBLE_DEVICES": "GPU-1f2e"})),
    ],
)
def test_only_a_named_gpu_is_offered(
    monkeypatch: pytest.MonkeyPatch, device: str, visible: str | None, offered: tuple[int, dict[str, str]]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert offered_gpus(device) == offered


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (RaySettings(memory_mb=10**9), "ray.memory_mb = 1000000000: this machine has"),
        (RaySettings(dashboard_host="192.0.2.1"), "ray.dashboard_host = '192.0.2.1': is no address of this machine"),
        (RaySettings(dashboard_host="no host"), "ray.dashboard_host = 'no host': is no address of this machine"),
        (RaySettings(dashboard_host="." * 300), "is no address of this machine"),
        (RaySettings(dashboard_host="localhost"), ""),
    ],
)
def test_what_ray_would_end_by_is_told_before_anything_is_trained(settings: RaySettings, told: str) -> None:
    if told:
        with pytest.raises(ConfigError, match=re.escape(told)):
            ray_session.check_ray(settings, dashboard=True)
    else:
        ray_session.check_ray(settings, dashboard=True)


TIMED_OUT = "The current node timed out during startup."


@pytest.mark.parametrize("error", [Exception(TIMED_OUT), TimeoutError("\n late \n")])
def test_a_ray_that_does_not_start_pauses_the_search(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    places = list[Path]()

    def times_out(**given: object) -> None:
        places.append(Path(str(given["_temp_dir"])))
        logs = places[-1] / "session_1" / "logs"
        logs.mkdir(parents=True)
        (logs / "raylet.err").write_text("no space left\n")
        raise error

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "init", times_out)
    caplog.set_level("DEBUG", logger="src")
    with (
        pytest.raises(Paused, match=rf"Ray did not start on this machine \({str(error).strip()}\); run.log"),
        ray_session.ray_session(RaySettings(), False, "cpu", tmp_path),
    ):
        raise AssertionError("it must not come to this")
    assert os.environ["RAY_ADDRESS"] == "10.0.0.1:6379"
    assert list(tmp_path.iterdir()) == []
    assert caplog.text.count("raylet.err: no space left") == 2
    assert [place.name for place in places] == ["ray", "two"]
    assert not places[0].parent.exists()


def test_a_busy_machine_gets_a_second_try_and_nothing_is_left_of_the_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    children = list[psutil.Popen]()

    def late(**given: object) -> None:
        assert "RAY_ADDRESS" not in os.environ
        if not children:
            children.append(psutil.Popen(["sleep", "600"]))
            raise Exception(TIMED_OUT)

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "init", late)
    with ray_session.ray_session(RaySettings(), False, "cpu", tmp_path) as scratch:
        assert not children[0].is_running()
        assert scratch.is_dir()
    assert not scratch.exists()
