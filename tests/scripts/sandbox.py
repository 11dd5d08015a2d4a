"""A copy of the checkout's scripts, stub programs that record their arguments, and a shell to run them in."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What the tests' own surroundings (a container, a developer's shell) must not decide.
FOREIGN = ("ANYO_", "POETRY_", "HF_", "PIP_", "XDG_", "DOCKER_", "VIRTUAL_ENV")


class Sandbox:
    """A scratch checkout with `bin/` in front of PATH; stubs in it write their arguments to `calls/<name>`."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        self.bin = folder / "bin"
        self.home = folder / "home"
        self.calls = folder / "calls"
        for made in (self.root, self.bin, self.home, self.calls):
            made.mkdir()
        for part in ("cmd", "env_shell"):
            shutil.copytree(ROOT / part, self.root / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "poetry.lock", self.root)

    def stub(self, name: str, body: str = "", at: Path | None = None) -> Path:
        """Install a program that records its arguments, one call a line separated by |, then runs `body` in bash."""
        path = at or self.bin / name
        path.parent.mkdir(parents=True, exist_ok=True)
        record = f'( IFS="|"; printf "%s\\n" "$*" ) >>"{self.calls / name}"'
        path.write_text(f"#!/usr/bin/env bash\n{record}\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    def recorded(self, name: str) -> list[list[str]]:
        """The calls of a stub so far, in order, each as its list of arguments."""
        file = self.calls / name
        return [line.split("|") for line in file.read_text().splitlines()] if file.exists() else []

    def run(
        self, script: str, *arguments: str, cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a script of the scratch checkout without a terminal."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
        path = f"{self.bin}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        return subprocess.run(
            [str(self.root / script), *arguments],
            cwd=cwd or self.root,
            env={**inherited, "HOME": str(self.home), "PATH": path, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
