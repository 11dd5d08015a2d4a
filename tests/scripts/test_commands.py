"""The commands in cmd/: they parse, they reach the right module, and test.sh runs every check and ends in pytest."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scripts.sandbox import ROOT, Sandbox

ENTRY_POINTS = [
    "run_student_baseline", "run_teacher", "run_distill", "run_eval_all", "tune_distill", "export", "recommend",
    "serve",
]  # fmt: skip


def test_every_script_parses_and_is_executable(scripts: Callable[[], list[Path]]) -> None:
    for script in scripts():
        subprocess.run(["bash", "-n", str(script)], check=True)
        sourced = script.name == "python.sh"
        assert os.access(script, os.X_OK) != sourced, script


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing(scripts: Callable[[], list[Path]]) -> None:
    done = subprocess.run(
        ["shellcheck", "--external-sources", "--source-path=SCRIPTDIR", *map(str, scripts())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_entry_point_has_a_script_a_module_and_a_poetry_name(name: str) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert pyproject["tool"]["poetry"]["scripts"][name] == f"src.exp.{name}:main"
    assert (ROOT / "src" / "exp" / f"{name}.py").is_file()
    assert (ROOT / "cmd" / f"{name}.sh").is_file()


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_command_passes_its_arguments_on_from_any_folder(sandbox: Sandbox, tmp_path: Path, name: str) -> None:
    sandbox.stub("python", at=sandbox.root / ".venv/bin/python", body='[ "$PWD" != "$WANTED" ] || echo at the root')
    done = sandbox.run(f"cmd/{name}.sh", "a=1", "b=two words", "--help", cwd=tmp_path, WANTED=str(sandbox.root))
    assert done.returncode == 0, done.stderr
    assert sandbox.recorded("python") == [["-m", f"src.exp.{name}", "a=1", "b=two words", "--help"]]
    assert "at the root" in done.stdout
    assert str(sandbox.root) in done.stderr  # says what relative paths are relative to


def test_command_hands_on_the_exit_code(sandbox: Sandbox) -> None:
    sandbox.stub("python", at=sandbox.root / ".venv/bin/python", body="exit 2")
    assert sandbox.run("cmd/run_distill.sh").returncode == 2


def test_command_without_environment_says_how_to_build_it(sandbox: Sandbox) -> None:
    done = sandbox.run("cmd/run_teacher.sh")
    assert done.returncode == 1
    assert "env_shell/setup_env.sh" in done.stderr


def test_command_uses_poetry_in_the_container(sandbox: Sandbox) -> None:
    sandbox.stub("poetry")
    sandbox.stub("python", at=sandbox.root / ".venv/bin/python")
    assert sandbox.run("cmd/run_teacher.sh", "x=1", ANYO_IN_CONTAINER="1").returncode == 0
    assert sandbox.recorded("poetry") == [["run", "python", "-m", "src.exp.run_teacher", "x=1"]]
    assert sandbox.recorded("python") == []  # the host's .venv, seen through the mount, is not used


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("seed=3", "--help")])
@pytest.mark.parametrize("name", [path.name for path in sorted((ROOT / "cmd").glob("*.sh"))])
def test_every_command_answers_help_without_doing_its_work(sandbox: Sandbox, name: str, arguments: tuple) -> None:
    sandbox.stub("setup_env.sh", at=sandbox.root / "env_shell/setup_env.sh")
    python = 'case " $* " in *" --help "* | *" -h "*) echo "Usage: as --help says" ;; *) exit 9 ;; esac'
    sandbox.stub("python", at=sandbox.root / ".venv/bin/python", body=python)
    done = sandbox.run(f"cmd/{name}", *(arguments if name != "tensorboard.sh" else arguments[-1:]))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: ")
    assert sandbox.recorded("setup_env.sh") == []


def test_quickstart_sets_up_then_runs_the_main_job_on_the_sample(sandbox: Sandbox) -> None:
    sandbox.stub("setup_env.sh", at=sandbox.root / "env_shell/setup_env.sh")
    sandbox.stub("python", at=sandbox.root / ".venv/bin/python")
    assert sandbox.run("cmd/quickstart.sh", "seed=3").returncode == 0
    assert len(sandbox.recorded("setup_env.sh")) == 1
    assert sandbox.recorded("python") == [["-m", "src.exp.tune_distill", "dataset=sample", "seed=3"]]


def test_quickstart_stops_when_the_environment_cannot_be_built(sandbox: Sandbox) -> None:
    sandbox.stub("setup_env.sh", at=sandbox.root / "env_shell/setup_env.sh", body="exit 1")
    sandbox.stub("python", at=sandbox.root / ".venv/bin/python")
    assert sandbox.run("cmd/quickstart.sh").returncode == 1
    assert sandbox.recorded("python") == []


def test_tensorboard_takes_a_result_of_the_callers_folder_and_stays_on_this_machine(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.stub("python", at=sandbox.root / ".venv/bin/python")
    (tmp_path / "mine").mkdir()
    assert sandbox.run("cmd/tensorboard.sh", "mine", "--port", "7007", cwd=tmp_path).returncode == 0
    folder = str(tmp_path / "mine")
    assert sandbox.recorded("python") == [
        ["-m", "tensorboard.main", "--logdir", folder, "--host", "127.0.0.1", "--port", "6006", "--port", "7007"]
    ]


def test_tensorboard_refuses_a_missing_result(sandbox: Sandbox) -> None:
    done = sandbox.run("cmd/tensorboard.sh", "nowhere")
    assert done.returncode == 1
    assert "RESULT=nowhere" in done.stderr


def prepare_checks(sandbox: Sandbox, failing: str) -> None:
    sandbox.stub("setup_env.sh", at=sandbox.root / "env_shell/setup_env.sh")
    sandbox.stub("shellcheck")
    sandbox.stub(
        "python",
        at=sandbox.root / ".venv/bin/python",
        body=f'[[ "$*" != *pytest* ]] || echo "7 passed in 1s"; [[ "$*" != *"{failing}"* ]] || exit 1',
    )


@pytest.mark.parametrize("failing", ["ruff check", "ruff format", "mypy", "importlinter", "pytest"])
def test_any_failing_check_fails_the_whole_but_all_of_them_run(sandbox: Sandbox, failing: str) -> None:
    prepare_checks(sandbox, failing)
    done = sandbox.run("cmd/test.sh")
    assert done.returncode == 1
    assert len(sandbox.recorded("python")) == 5
    assert done.stdout.splitlines()[-1] == "7 passed in 1s"


def pytest_call(sandbox: Sandbox) -> list[str]:
    """The arguments of the one call of pytest; the other checks run beside it, in any order."""
    (call,) = [call for call in sandbox.recorded("python") if call[:2] == ["-m", "pytest"]]
    return call


def test_all_checks_passing_is_a_success_that_ends_in_the_tests(sandbox: Sandbox) -> None:
    prepare_checks(sandbox, "nothing fails")
    done = sandbox.run("cmd/test.sh", "tests/golden", "--golden-dir", "DIR")
    assert done.returncode == 0, done.stdout + done.stderr
    assert pytest_call(sandbox)[-3:] == ["tests/golden", "--golden-dir", "DIR"]
    assert len(sandbox.recorded("shellcheck")) == 1
    assert done.stdout.splitlines()[-1] == "7 passed in 1s"


def test_the_output_of_a_check_is_shown_only_where_it_fails(sandbox: Sandbox) -> None:
    body = 'case "$*" in *pytest*) echo "7 passed" ;; *mypy*) echo src is wrong; exit 1 ;; *) echo all is well ;; esac'
    prepare_checks(sandbox, "")
    sandbox.stub("python", at=sandbox.root / ".venv/bin/python", body=body)
    done = sandbox.run("cmd/test.sh")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith(("ok", "FAILED"))] == [
        "ok      ruff check", "ok      ruff format", "FAILED  mypy", "ok      import-linter", "ok      shellcheck",
        "FAILED: mypy",
    ]  # fmt: skip
    assert "src is wrong" in lines
    assert "all is well" not in lines


@pytest.mark.parametrize(
    ("arguments", "selected"), [((), "not network and not nightly"), (("-x", "--all"), "not network")]
)
def test_nightly_tests_run_when_all_are_asked_for(sandbox: Sandbox, arguments: tuple[str, ...], selected: str) -> None:
    prepare_checks(sandbox, "nothing fails")
    assert sandbox.run("cmd/test.sh", *arguments).returncode == 0
    call = pytest_call(sandbox)
    assert call[call.index("-m", 1) + 1] == selected
    assert ("-x" in call, "--all" in call) == ("-x" in arguments, False)


def test_ci_runs_the_developers_command() -> None:
    assert "./cmd/test.sh" in (ROOT / ".ci" / "run").read_text()
    assert "./cmd/test.sh" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
