"""Which revision of the source a run used."""

from __future__ import annotations

import subprocess
from typing import TypedDict

from src.core.paths import REPOSITORY


class GitInfo(TypedDict):
    """``revision`` is None outside a git checkout; ``dirty`` says whether tracked files differ from it."""

    revision: str | None
    dirty: bool | None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def git_info() -> GitInfo:
    """The revision of the checkout that holds this file."""
    revision = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--untracked-files=no") if revision else None
    return {"revision": revision, "dirty": None if status is None else bool(status)}
