"""env_shell/lock_constraints.py on small lock files, and on the repository's own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.scripts.sandbox import ROOT

LOCK = """
[[package]]
name = "torch"
version = "2.13.0"
optional = false
groups = ["main"]

[[package]]
name = "nvidia-cublas"
version = "13.1.1.3"
optional = false
groups = ["main"]
markers = "platform_system == \\"Linux\\""

[[package]]
name = "triton"
version = "3.7.1"
optional = false
groups = ["main"]

[[package]]
name = "colorama"
version = "0.4.6"
optional = false
groups = ["main", "dev"]
markers = {main = "platform_system == \\"Windows\\"", dev = "sys_platform == \\"win32\\""}

[[package]]
name = "pytest"
version = "9.2.0"
optional = false
groups = ["dev"]

[[package]]
name = "extra-thing"
version = "1.0"
optional = true
groups = ["main"]
markers = "extra == \\"x\\""

[[package]]
name = "sphinx"
version = "9.0"
optional = false
groups = ["docs"]
"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock_constraints", ROOT / "env_shell" / "lock_constraints.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def lines(script: ModuleType, capsys: pytest.CaptureFixture[str], lock: Path, *arguments: str) -> list[str]:
    assert script.main([str(lock), *arguments]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "poetry.lock"
    path.write_text(LOCK)
    return path


def test_main_and_dev_with_markers_and_without_optional_or_foreign_groups(
    script: ModuleType, capsys: pytest.CaptureFixture[str], lock: Path
) -> None:
    assert lines(script, capsys, lock) == [
        "torch==2.13.0",
        'nvidia-cublas==13.1.1.3 ; platform_system == "Linux"',
        "triton==3.7.1",
        'colorama==0.4.6 ; (platform_system == "Windows") or (sys_platform == "win32")',
        "pytest==9.2.0",
    ]


def test_without_cuda_drops_nvidia_and_triton_only(
    script: ModuleType, capsys: pytest.CaptureFixture[str], lock: Path
) -> None:
    names = [line.split("==")[0] for line in lines(script, capsys, lock, "--without-cuda")]
    assert names == ["torch", "colorama", "pytest"]


def test_one_group_takes_that_groups_marker(script: ModuleType, capsys: pytest.CaptureFixture[str], lock: Path) -> None:
    assert lines(script, capsys, lock, "--groups", "dev") == [
        'colorama==0.4.6 ; sys_platform == "win32"',
        "pytest==9.2.0",
    ]


def test_only(script: ModuleType, capsys: pytest.CaptureFixture[str], lock: Path) -> None:
    assert lines(script, capsys, lock, "--only", "torch") == ["torch==2.13.0"]


def test_an_extra_brings_its_packages_without_a_word_that_pip_would_read_as_no(
    script: ModuleType, capsys: pytest.CaptureFixture[str], lock: Path
) -> None:
    assert set(lines(script, capsys, lock, "--extras", "x")) - set(lines(script, capsys, lock)) == {"extra-thing==1.0"}
    lock.write_text(
        LOCK.replace('"extra == \\"x\\""', '"os_name == \\"nt\\" and extra == \\"x\\" or extra == \\"y\\""')
    )
    (line,) = lines(script, capsys, lock, "--extras", "x", "--only", "extra-thing")
    assert line == 'extra-thing==1.0 ; os_name == "nt" and python_version >= "3" or python_version < "3"'


def test_an_unknown_extra_is_an_error(script: ModuleType, capsys: pytest.CaptureFixture[str], lock: Path) -> None:
    assert script.main([str(lock), "--extras", "x,z"]) == 1
    assert "no extra z; choose from x" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no package"),
        ("[[package", "not valid TOML"),
        ('[[package]]\nname = "a"\nversion = "1"\n', "without groups"),
    ],
)
def test_unusable_lock_is_an_error_with_a_next_step(
    script: ModuleType, capsys: pytest.CaptureFixture[str], lock: Path, text: str, message: str
) -> None:
    lock.write_text(text)
    assert script.main([str(lock)]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert "poetry lock" in captured.err
    assert captured.out == ""


def test_missing_lock_and_unknown_package_are_errors(
    script: ModuleType, capsys: pytest.CaptureFixture[str], lock: Path
) -> None:
    assert script.main([str(lock.with_name("none.lock"))]) == 1
    assert script.main([str(lock), "--only", "nosuch"]) == 1
    assert "only=nosuch" in capsys.readouterr().err


def test_the_repositorys_lock(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    without = lines(script, capsys, ROOT / "poetry.lock", "--without-cuda")
    everything = lines(script, capsys, ROOT / "poetry.lock")
    pins = {line.split("==")[0]: line.split("==")[1] for line in without if ";" not in line}
    assert pins["torch"] == "2.13.0"
    assert {"ray", "optuna", "transformers", "peft", "hydra-core", "pytest", "ruff"} <= set(pins)
    assert any(line.startswith("nvidia-") for line in everything)
    assert not any(line.startswith(("nvidia-", "cuda-", "triton")) for line in without)
