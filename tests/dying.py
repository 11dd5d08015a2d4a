"""A training that is killed right after its state was saved for the n-th time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from src.core.checkpoints import pack, unpack


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


class DyingCheckpoint:
    """In memory. The next training that is given it goes on, and is left alone."""

    def __init__(self, after: int) -> None:
        self.left, self.content = after, b""

    def load(self) -> Mapping[str, Any] | None:
        """As a file's."""
        return unpack(self.content, "this", "memory") if self.content else None

    def save(self, state: Mapping[str, Any]) -> None:
        """As a file's."""
        self.content, self.left = pack(state, "this"), self.left - 1
        if self.left == 0:
            raise Killed
