"""In what objects that were made alike differ: numbers and functions may, everything else must be the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

_FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType, partial)


class NotAlike(Exception):
    """Some objects cannot stand for each other; the message says why."""


@dataclass(frozen=True, eq=False)
class Slot:
    """A place in the first object, ``owner[key]``, and what stands there in each of them."""

    owner: dict[str, Any]
    key: str
    values: Sequence[Any]


@dataclass
class Differences:
    """Where objects differ; ``looked_at`` are the first one's attributes, and those of all that belongs to it."""

    numbers: list[Slot] = field(default_factory=list)
    functions: list[Slot] = field(default_factory=list)
    looked_at: list[dict[str, Any]] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, things: Sequence[object], ignore: Collection[str] = ()) -> Differences:
        """Compare objects attribute by attribute. Tensors and streams are not looked at, nor the attributes of the
        objects themselves that ``ignore`` names.

        Numbers that differ must lie on the same side of 0: programs ask whether a weight is 0, not what it is.

        Raises:
            NotAlike: they differ in something else.
        """
        found = cls()
        found._attributes([vars(thing) for thing in things], type(things[0]).__name__, ignore)
        return found

    def _attributes(self, owners: Sequence[dict[str, Any]], path: str, ignore: Collection[str] = ()) -> None:
        self.looked_at.append(owners[0])
        names = set(owners[0])
        if any(set(owner) != names for owner in owners):
            raise NotAlike(f"{path} does not have the same parts in all of them")
        for name in sorted(names - set(ignore)):
            self._compare([owner[name] for owner in owners], owners[0], name, f"{path}.{name}")

    def _compare(self, things: Sequence[Any], owner: dict[str, Any] | None, key: str, path: str) -> None:
        first = things[0]
        if all(thing is first for thing in things):
            return
        if any(isinstance(thing, (Tensor, torch.Generator)) for thing in things):
            return
        if len({type(thing) for thing in things}) > 1 or isinstance(first, type):
            raise NotAlike(f"{path} is of another kind")
        if isinstance(first, (int, float)) and not isinstance(first, bool):
            self._number(things, owner, key, path)
        elif isinstance(first, _FUNCTIONS):
            self.functions.append(Slot(_held(owner, path), key, things))
        elif id(first) in self._seen:
            return
        elif isinstance(first, Mapping):
            self._seen.add(id(first))
            self._attributes(list(things), path)
        elif isinstance(first, (list, tuple)):
            if len({len(thing) for thing in things}) > 1:
                raise NotAlike(f"{path} has another length")
            for place, parts in enumerate(zip(*things, strict=True)):
                self._compare(parts, None, "", f"{path}[{place}]")
        elif hasattr(first, "__dict__"):
            self._seen.add(id(first))
            self._attributes([vars(thing) for thing in things], path)
        elif any(thing != first for thing in things):
            raise NotAlike(f"{path} differs")

    def _number(self, things: Sequence[float], owner: dict[str, Any] | None, key: str, path: str) -> None:
        if all(thing == things[0] for thing in things):
            return
        if len({(thing > 0) - (thing < 0) for thing in things}) > 1:
            raise NotAlike(f"{path} is 0 in some of them")
        self.numbers.append(Slot(_held(owner, path), key, things))


def _held(owner: dict[str, Any] | None, path: str) -> dict[str, Any]:
    if owner is None:
        raise NotAlike(f"{path} differs, in a list")
    return owner
