"""env_shell/setup_env.sh with a Python whose pip, venv and torch are stubs: what it would install, and when."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from tests.scripts.sandbox import Sandbox

# Everything but pip, venv and questions about torch or the network goes to the real interpreter.
PYTHON = f"""
case "$*" in
    "-m pip --version") echo pip ;;
    "-m pip check") ;;
    "-m pip "*) echo "$PIP_SAYS"; exit ${{PIP_FAILS:-0}} ;;
    "-m venv "*) mkdir -p "${{@: -1}}/bin" && cp "$0" "${{@: -1}}/bin/python" ;;
    *urllib*) exit ${{CPU_INDEX_FAILS:-1}} ;;
    *importlib.metadata*) exit ${{TORCH_IS_CPU:-1}} ;;
    *"import torch"*) echo "2.13.0+cpu False" ;;
    *) exec "{sys.executable}" "$@" ;;
esac
"""
SETUP = "env_shell/setup_env.sh"


@pytest.fixture
def machine(sandbox: Sandbox) -> Sandbox:
    """A machine with Python 3, and without a GPU."""
    sandbox.stub("python", at=sandbox.bin / "python3", body=PYTHON)
    sandbox.stub("nvidia-smi", body="exit 1")
    return sandbox


def installs(machine: Sandbox) -> list[list[str]]:
    """The pip installs so far, without the options that all of them share."""
    calls = [call[3:] for call in machine.recorded("python") if call[:3] == ["-m", "pip", "install"]]
    return [[word for word in call if word not in ("--disable-pip-version-check", "--no-input")] for call in calls]


def requirements(machine: Sandbox) -> list[str]:
    return (machine.root / ".venv/requirements.txt").read_text().splitlines()


def test_builds_from_the_lock_then_does_nothing(machine: Sandbox) -> None:
    first = machine.run(SETUP)
    assert first.returncode == 0, first.stderr
    torch, rest = installs(machine)
    assert torch == ["--upgrade", "--no-deps", "torch==2.13.0"]
    assert rest == ["--no-deps", "-r", ".venv/requirements.txt"]
    names = [line.split("==")[0] for line in requirements(machine)]
    assert {"ray", "optuna", "pytest"} <= set(names)
    assert not [name for name in names if name.startswith(("nvidia", "cuda", "triton"))]
    assert "torch" not in names

    second = machine.run(SETUP)
    assert second.returncode == 0
    assert second.stdout == "setup_env: .venv is current\n"
    assert len(installs(machine)) == 2


def test_cpu_machine_takes_the_cpu_index_where_it_answers(machine: Sandbox) -> None:
    assert machine.run(SETUP, CPU_INDEX_FAILS="0").returncode == 0
    assert installs(machine)[0][2:4] == ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]


def test_cuda_build_on_a_cpu_machine_keeps_its_libraries_and_says_so(machine: Sandbox) -> None:
    done = machine.run(SETUP, TORCH_IS_CPU="0")
    assert "no CPU build of torch" in done.stdout
    assert any(line.startswith("nvidia-") for line in requirements(machine))


def test_gpu_machine_takes_the_cuda_build_and_keeps_it_while_the_gpu_is_away(machine: Sandbox) -> None:
    machine.stub("nvidia-smi", body="exit 0")
    assert machine.run(SETUP, TORCH_IS_CPU="0").returncode == 0
    assert installs(machine)[0] == ["--no-deps", "torch===2.13.0"]
    assert any(line.startswith("nvidia-") for line in requirements(machine))
    machine.stub("nvidia-smi", body="exit 1")
    assert machine.run(SETUP).stdout == "setup_env: .venv is current\n"


def test_changed_lock_updates_in_place(machine: Sandbox) -> None:
    machine.run(SETUP)
    lock = machine.root / "poetry.lock"
    lock.write_text(lock.read_text() + "\n# changed\n")
    done = machine.run(SETUP)
    assert done.returncode == 0
    assert "bringing .venv up to date" in done.stdout
    assert len(installs(machine)) == 4


def test_failed_install_is_reported_and_repeated(machine: Sandbox) -> None:
    failed = machine.run(SETUP, PIP_FAILS="1", PIP_SAYS="ERROR: disk full")
    assert failed.returncode == 1
    assert "ERROR: disk full" in failed.stderr
    assert not (machine.root / ".venv/.anyo-stamp").exists()
    again = machine.run(SETUP)
    assert again.returncode == 0
    assert "creating .venv" in again.stdout


def test_unreachable_index_is_named(machine: Sandbox) -> None:
    done = machine.run(SETUP, PIP_FAILS="1", PIP_SAYS="NewConnectionError: Name or service not known")
    assert "check the network" in done.stderr


def test_unfinished_environment_is_built_anew(machine: Sandbox) -> None:
    machine.run(SETUP)
    (machine.root / ".venv/.anyo-unfinished").touch()
    assert "creating .venv" in machine.run(SETUP).stdout


def test_environment_made_by_hand_is_completed_not_wiped(machine: Sandbox) -> None:
    machine.stub("python", at=machine.root / ".venv/bin/python", body=PYTHON)
    mine = machine.root / ".venv/mine"
    mine.touch()
    assert machine.run(SETUP).returncode == 0
    assert mine.exists()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"ANYO_PYTHON": "/no/such/python"}, "ANYO_PYTHON=/no/such/python"),
        ({"ANYO_EXTRAS": "a b"}, "ANYO_EXTRAS=a b must be names"),
        ({"ANYO_TORCH": "tpu"}, "ANYO_TORCH=tpu must be cpu or cuda"),
    ],
)
def test_bad_choice_is_refused_before_anything_is_made(machine: Sandbox, env: dict[str, str], message: str) -> None:
    done = machine.run(SETUP, **env)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (machine.root / ".venv").exists()


def test_python_without_venv_is_explained(sandbox: Sandbox) -> None:
    no_venv = f'case "$*" in *ensurepip*) exit 1 ;; *) exec "{sys.executable}" "$@" ;; esac'
    python = sandbox.stub("python", at=sandbox.bin / "python3", body=no_venv)
    done = sandbox.run(SETUP, ANYO_PYTHON=str(python))
    assert done.returncode == 1
    assert "python3-venv" in done.stderr


def pins(machine: Sandbox) -> set[str]:
    return {line.split("==")[0] for line in requirements(machine)}


def test_an_extra_is_installed_at_its_locked_version_and_kept(machine: Sandbox) -> None:
    machine.run(SETUP)
    assert "bitsandbytes" not in pins(machine)
    assert "bringing .venv up to date" in machine.run(SETUP, ANYO_EXTRAS="quantised").stdout
    (line,) = [line for line in requirements(machine) if line.startswith("bitsandbytes")]
    lock = tomllib.loads((machine.root / "poetry.lock").read_text())
    (version,) = [package["version"] for package in lock["package"] if package["name"] == "bitsandbytes"]
    assert line == f"bitsandbytes=={version}"
    # the commands call the script without a word about extras
    assert machine.run(SETUP).stdout == "setup_env: .venv is current\n"
    lock_file = machine.root / "poetry.lock"
    lock_file.write_text(lock_file.read_text() + "\n# changed\n")
    machine.run(SETUP)
    assert "bitsandbytes" in pins(machine)


def test_the_help_lists_every_extra(machine: Sandbox) -> None:
    extras = tomllib.loads((machine.root / "poetry.lock").read_text())["extras"]
    shown = " ".join(machine.run(SETUP, "--help").stdout.split())
    assert [name for name in extras if f"{name}: " not in shown] == []


def test_an_unknown_extra_is_refused(machine: Sandbox) -> None:
    done = machine.run(SETUP, ANYO_EXTRAS="quantized")
    assert done.returncode == 1
    assert "no extra quantized; choose from index, quantised, serve" in done.stderr
    assert installs(machine) == []


QUIET = ["install", "--no-interaction", "--quiet"]


@pytest.mark.parametrize(
    ("has_bitsandbytes", "env", "asked"),
    [
        (False, {}, QUIET),
        (False, {"ANYO_EXTRAS": "quantised"}, [*QUIET, "--extras", "quantised"]),
        (True, {}, [*QUIET, "--extras", "quantised"]),  # poetry would remove what is not asked for
        (True, {"ANYO_EXTRAS": ""}, QUIET),
    ],
)
def test_container_installs_with_poetry_and_leaves_dot_venv_alone(
    machine: Sandbox, has_bitsandbytes: bool, env: dict[str, str], asked: list[str]
) -> None:
    machine.stub("poetry", body=f'[ "$1" != run ] || exit {0 if has_bitsandbytes else 1}')
    assert machine.run(SETUP, ANYO_IN_CONTAINER="1", **env).returncode == 0
    assert [call for call in machine.recorded("poetry") if call[0] != "run"] == [asked]
    assert not (machine.root / ".venv").exists()


def test_works_from_another_folder(machine: Sandbox, tmp_path: Path) -> None:
    assert machine.run(SETUP, cwd=tmp_path).returncode == 0
    assert (machine.root / ".venv/.anyo-stamp").is_file()
