"""In what objects that were made alike differ: numbers and functions may, everything else must be the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

_FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType, partial)


class NotBatchable(Exception):
    """Some objects cannot stand for each other; the message says why."""


@dataclass(frozen=True, eq=False)
class DifferingValue:
    """A place in the first object, ``owner[key]``, and what stands there in each of them."""

    owner: dict[str, Any]
    key: str
    values: Sequence[Any]


@dataclass
class Differences:
    """Where objects differ; ``looked_at`` are the first one's attributes, and those of all that belongs to it."""

    numbers: list[DifferingValue] = field(default_factory=list)
    functions: list[DifferingValue] = field(default_factory=list)
    looked_at: list[dict[str, Any]] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, things: Sequence[object], ignore: Collection[str] = ()) -> Differences:
        """Compare objects attribute by attribute. Streams are not looked at, nor the attributes of the objects
        themselves that ``ignore`` names.

        Numbers that differ must lie on the same side of 0: programs ask whether a weight is 0, not what it is. Tensors
        must be the same, but for a module's: weights and buffers are another's business, and what else it holds is a
        step's scratch, unless it is a single number.

        Raises:
            NotBatchable: they differ in something else.
        """
        found = cls()
        path, module = type(things[0]).__name__, isinstance(things[0], nn.Module)
        found._attributes([vars(thing) for thing in things], path, ignore, module)
        return found

    def _attributes(
        self, owners: Sequence[dict[str, Any]], path: str, ignore: Collection[str] = (), module: bool = False
    ) -> None:
        self.looked_at.append(owners[0])
        names = set(owners[0])
        if any(set(owner) != names for owner in owners):
            raise NotBatchable(f"{path} does not have the same parts in all of them")
        for name in sorted(names - set(ignore)):
            self._compare([owner[name] for owner in owners], owners[0], name, f"{path}.{name}", module)

    def _compare(
        self, things: Sequence[Any], owner: dict[str, Any] | None, key: str, path: str, module: bool = False
    ) -> None:
        first = things[0]
        if all(thing is first for thing in things) or any(isinstance(thing, torch.Generator) for thing in things):
            return
        if any(isinstance(thing, Tensor) for thing in things):
            _require_same(things, path, module)
            return
        if len({type(thing) for thing in things}) > 1 or isinstance(first, type):
            raise NotBatchable(f"{path} is of another kind")
        if isinstance(first, (int, float)) and not isinstance(first, bool):
            self._number(things, owner, key, path)
        elif isinstance(first, _FUNCTIONS):
            self.functions.append(DifferingValue(_held(owner, path), key, things))
        elif id(first) in self._seen:
            return
        elif isinstance(first, Mapping):
            self._seen.add(id(first))
            self._attributes(list(things), path, module=module)
        elif isinstance(first, (list, tuple)):
            if len({len(thing) for thing in things}) > 1:
                raise NotBatchable(f"{path} has another length")
            for place, parts in enumerate(zip(*things, strict=True)):
                self._compare(parts, None, "", f"{path}[{place}]", module)
        elif hasattr(first, "__dict__"):
            self._seen.add(id(first))
            self._attributes([vars(thing) for thing in things], path, module=isinstance(first, nn.Module))
        elif any(thing != first for thing in things):
            raise NotBatchable(f"{path} differs")

    def _number(self, things: Sequence[float], owner: dict[str, Any] | None, key: str, path: str) -> None:
        if all(thing == things[0] for thing in things):
            return
        if len({(thing > 0) - (thing < 0) for thing in things}) > 1:
            raise NotBatchable(f"{path} is 0 in some of them")
        self.numbers.append(DifferingValue(_held(owner, path), key, things))


def _require_same(things: Sequence[Any], path: str, module: bool) -> None:
    """Raises ``NotBatchable`` for tensors that are not the same; of a module's only single numbers are looked at."""
    tensors = [thing for thing in things if isinstance(thing, Tensor)]
    if module and (len(tensors) < len(things) or any(one.dim() or isinstance(one, nn.Parameter) for one in tensors)):
        return
    first = tensors[0]
    if len(tensors) < len(things) or any(
        (one.shape, one.dtype, one.device) != (first.shape, first.dtype, first.device) or not torch.equal(one, first)
        for one in tensors
    ):
        raise NotBatchable(f"{path} holds other numbers")


def _held(owner: dict[str, Any] | None, path: str) -> dict[str, Any]:
    if owner is None:
        raise NotBatchable(f"{path} differs, in a list")
    return owner
