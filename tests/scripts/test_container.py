"""env_shell/start_experiment_container.sh with a stub docker: every clause of what the container gives its user."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.scripts.sandbox import Sandbox

START = "env_shell/start_experiment_container.sh"
DOCKER = """
case "$1 $2" in
    "info "*) [ -z "${DAEMON_DOWN:-}" ] || exit 1; echo "[${SECURITY:-name=seccomp}]" ;;
    "container inspect")
        [ -n "${STATE:-}" ] || exit 1
        case "$4" in *Labels*) echo "${CHECKOUT:-}" ;; *) echo "$STATE" ;; esac ;;
    "image inspect") [ -n "${IMAGE_EXISTS:-}" ] ;;
    "run "*) exit ${RUN_FAILS:-0} ;;
esac
"""


@pytest.fixture
def host(sandbox: Sandbox) -> Sandbox:
    sandbox.stub("docker", body=DOCKER)
    return sandbox


def calls(host: Sandbox, verb: str) -> list[list[str]]:
    return [call for call in host.recorded("docker") if call[0] == verb]


def values(call: list[str], option: str) -> list[str]:
    return [call[i + 1] for i, word in enumerate(call) if word == option]


def test_builds_a_missing_image_then_runs_it(host: Sandbox) -> None:
    done = host.run(START)
    assert done.returncode == 0, done.stderr
    (build,), (run,) = calls(host, "build"), calls(host, "run")
    assert values(build, "--tag") == ["anyo-ilora-dllm2rec:latest"]
    assert values(build, "--file") == [f"{host.root}/Dockerfile"]
    assert run[-2:] == ["anyo-ilora-dllm2rec:latest", "bash"]


def test_what_the_container_is_given(host: Sandbox) -> None:
    host.run(START, IMAGE_EXISTS="1")
    assert calls(host, "build") == []
    (run,) = calls(host, "run")
    assert {"--rm", "--interactive"} <= set(run)
    assert values(run, "--gpus") == ["all"]
    assert values(run, "--name") == ["anyo-experiment"]
    assert values(run, "--user") == [f"{os.getuid()}:{os.getgid()}"]
    assert values(run, "--publish") == ["127.0.0.1:8265:8265", "127.0.0.1:6006:6006"]
    assert values(run, "--volume") == [
        f"{host.root}:/workspace",
        f"anyo-experiment-home-{os.getuid()}:/home/anyo",
        f"{host.home}/.cache/huggingface:/hf-cache",
    ]
    assert (host.home / ".cache/huggingface").is_dir()  # made here, for docker would make it for root
    assert values(run, "--workdir") == ["/workspace"]


def test_no_terminal_is_asked_for_where_there_is_none(host: Sandbox) -> None:
    host.run(START)
    assert "--tty" not in calls(host, "run")[0]


def test_shared_memory_is_half_of_the_memory_or_as_asked(host: Sandbox) -> None:
    host.run(START, ANYO_SHM_SIZE="3g")
    assert values(calls(host, "run")[0], "--shm-size") == ["3g"]
    host.run(START)
    memory = Path("/proc/meminfo")
    if memory.exists():
        kilobytes = int(memory.read_text().split("MemTotal:")[1].split()[0])
        assert values(calls(host, "run")[1], "--shm-size") == [f"{kilobytes // 2}k"]


def test_token_is_passed_by_name_only(host: Sandbox) -> None:
    host.run(START, HF_TOKEN="hf_secret")
    (run,) = calls(host, "run")
    assert "HF_TOKEN" in values(run, "--env")
    assert not any("hf_secret" in word for word in run)
    host.run(START)
    assert "HF_TOKEN" not in values(calls(host, "run")[1], "--env")


def test_cache_of_the_callers_choice(host: Sandbox, tmp_path: Path) -> None:
    host.run(START, HF_HOME=str(tmp_path / "hf"))
    assert f"{tmp_path}/hf:/hf-cache" in values(calls(host, "run")[0], "--volume")


def test_rootless_docker_maps_the_caller_to_root(host: Sandbox) -> None:
    host.run(START, SECURITY="name=seccomp name=rootless")
    assert values(calls(host, "run")[0], "--user") == ["0:0"]


def test_command_options_and_further_folders(host: Sandbox) -> None:
    host.run(START, "--no-gpu", "--volume", "/data:/data:ro", "--", "./cmd/tune_distill.sh", "a=b c")
    (run,) = calls(host, "run")
    assert values(run, "--gpus") == []
    assert "/data:/data:ro" in values(run, "--volume")
    assert run[-2:] == ["./cmd/tune_distill.sh", "a=b c"]


def test_detached_container_stays_up(host: Sandbox) -> None:
    done = host.run(START, "--detach")
    (run,) = calls(host, "run")
    assert "--detach" in run
    assert "--interactive" not in run
    assert run[-2:] == ["sleep", "infinity"]
    assert "--join" in done.stderr
    assert "docker stop anyo-experiment" in done.stderr


def test_mps_is_started_before_the_command_and_found_by_who_joins(host: Sandbox) -> None:
    host.run(START, "--mps", "--", "echo", "a  b")
    (run,) = calls(host, "run")
    place = "CUDA_MPS_PIPE_DIRECTORY=/tmp/nvidia-mps"
    assert {place, "CUDA_MPS_LOG_DIRECTORY=/tmp/nvidia-mps/log"} <= set(values(run, "--env"))
    assert run[-6:-4] == ["bash", "-c"]
    assert run[-3:] == ["mps", "echo", "a  b"]
    tools = host.home / "tools"
    tools.mkdir()

    def inside(*words: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{tools}:/usr/bin:/bin", "CUDA_MPS_LOG_DIRECTORY": str(host.home / "log")}
        return subprocess.run([*run[-6:-2], *words], capture_output=True, text=True, check=True, env=env)

    # where the daemon is missing that is told, and the command runs all the same
    done = inside(*run[-2:])
    assert done.stdout == "a  b\n"
    assert done.stderr.splitlines()[-1] == "MPS did not start: trials take turns on the GPU"
    # where it is there it has been started, as a daemon, when the command begins
    control = tools / "nvidia-cuda-mps-control"
    control.write_text(f'#!/bin/sh\necho "$@" > {tools}/started\n')
    control.chmod(0o755)
    done = inside("cat", f"{tools}/started")
    assert (done.stdout, done.stderr) == ("-d\n", "")
    assert (host.home / "log").is_dir()
    host.run(START)
    assert place not in values(calls(host, "run")[1], "--env")


@pytest.mark.parametrize("options", [[], ["--join"]])
def test_running_container_is_joined(host: Sandbox, options: list[str]) -> None:
    done = host.run(START, *options, STATE="running", CHECKOUT=str(host.root))
    assert done.returncode == 0, done.stderr
    assert calls(host, "exec") == [["exec", "--interactive", "--workdir", "/workspace", "anyo-experiment", "bash"]]
    assert calls(host, "run") == calls(host, "build") == []


@pytest.mark.parametrize(
    ("options", "env", "message"),
    [
        (["--join"], {}, "does not run"),
        (["--detach"], {"STATE": "running"}, "runs already"),
        ([], {"STATE": "running", "CHECKOUT": "/elsewhere"}, "another checkout, /elsewhere"),
        ([], {"STATE": "exited"}, "docker rm anyo-experiment"),
        ([], {"DAEMON_DOWN": "1"}, "daemon does not answer"),
        (["--detach", "--join"], {}, "one of them"),
        (["--mps", "--no-gpu"], {}, "one of them"),
        (["--mps", "--join"], {}, "belongs to the start"),
        (["--volume", "nocolon"], {}, "HOST:PATH"),
        (["--frobnicate"], {}, "unknown argument '--frobnicate'"),
    ],
)
def test_refusals_name_the_cause_and_start_nothing(
    host: Sandbox, options: list[str], env: dict[str, str], message: str
) -> None:
    done = host.run(START, *options, **env)
    assert done.returncode == 1
    assert message in done.stderr
    assert calls(host, "run") == calls(host, "exec") == calls(host, "build") == []


def test_missing_docker_is_explained(sandbox: Sandbox) -> None:
    bare = sandbox.bin / "bare"  # a PATH with only what the script needs before it looks for docker
    bare.mkdir()
    for name in ("bash", "dirname", "env"):
        source = next(Path(folder) / name for folder in ("/usr/bin", "/bin") if (Path(folder) / name).exists())
        (bare / name).symlink_to(source)
    done = sandbox.run(START, PATH=str(bare))
    assert done.returncode == 1
    assert "docker is not installed" in done.stderr


def test_failures_of_docker_come_with_advice_and_those_of_the_command_do_not(host: Sandbox) -> None:
    failed = host.run(START, RUN_FAILS="125")
    assert failed.returncode == 125
    assert "--no-gpu" in failed.stderr
    command = host.run(START, RUN_FAILS="2")
    assert command.returncode == 2
    assert "--no-gpu" not in command.stderr


def test_rebuild_takes_the_newest_base(host: Sandbox) -> None:
    host.run(START, "--rebuild", IMAGE_EXISTS="1")
    (build,) = calls(host, "build")
    assert {"--pull", "--no-cache"} <= set(build)
    assert len(calls(host, "run")) == 1


def test_help_needs_no_docker(sandbox: Sandbox) -> None:
    done = sandbox.run(START, "--help")
    assert done.returncode == 0
    assert "poetry install" in done.stdout
