"""Reading golden files with a ledger: what nobody looked at is reported, so that no vector goes unchecked silently."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

#: README "Conventions": worst |got - want| / max(1, |want|)
FLOAT64, FLOAT32, FLOAT32_LOSS, BFLOAT16 = 1e-9, 1e-5, 2e-5, 1e-2
TRACE_LOSS, TRACE_PARAMETERS = 1e-4, 5e-4

#: results of the two precisions: prefix of the array names, and what our code runs in
PRECISIONS = {"f64": torch.float64, "f32": torch.float32}


class GoldenMismatch(AssertionError):
    """Ours differs from the golden number, or a golden file is not what its manifest says."""


def require(condition: bool, message: str) -> None:
    """Raise ``GoldenMismatch`` unless the condition holds (plain asserts are not rewritten outside test modules)."""
    if not condition:
        raise GoldenMismatch(message)


def worst_error(got: Tensor, want: Tensor) -> float:
    """README's error measure; NaN where either side is NaN."""
    got, want = got.detach().double(), want.double()
    return float(((got - want).abs() / want.abs().clamp(min=1)).max()) if want.numel() else 0.0


class Arrays:
    """The arrays of one ``.npz`` or ``.safetensors`` file; remembers which ones were looked at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.suffix == ".npz":
            with np.load(path) as content:
                self._tensors = {name: torch.from_numpy(np.array(content[name])) for name in content.files}
        else:
            self._tensors = load_file(path)
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Tensor:
        require(name in self._tensors, f"{self.path.name} has no array {name}")
        self._used.add(name)
        return self._tensors[name]

    def get(self, name: str) -> Tensor | None:
        """An array that not every case has."""
        return self[name] if name in self._tensors else None

    def names(self, prefix: str = "") -> list[str]:
        """Every array whose name starts so, in the file's order; looking at names uses none of them."""
        return [name for name in self._tensors if name.startswith(prefix)]

    def number(self, name: str) -> float:
        """A 0-d array."""
        return float(self[name])

    def whole(self, name: str) -> int:
        """A 0-d array of integers."""
        return int(self[name])

    def state(self, dtype: torch.dtype, prefix: str = "") -> dict[str, Tensor]:
        """Every array under a prefix (taken off), floating ones in ``dtype``."""
        found = {name.removeprefix(prefix): self[name] for name in self.names(prefix)}
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in found.items()}

    def expect(self, name: str, got: Tensor, tolerance: float) -> None:
        """Compare with a golden result, shape and worst element."""
        want = self[name]
        require(tuple(got.shape) == tuple(want.shape), f"{self.path.name} {name}: {got.shape} is not {want.shape}")
        error = worst_error(got, want)
        require(error <= tolerance, f"{self.path.name} {name}: error {error:.3g} exceeds {tolerance:g}")

    def unused(self) -> list[str]:
        """Arrays that nobody looked at."""
        return [f"{self.path.name}: {name}" for name in self._tensors if name not in self._used]


class Leaves:
    """One level of a JSON object; remembers which keys were taken."""

    def __init__(self, content: Mapping[str, Any], label: str) -> None:
        self._content, self.label = content, label
        self._used: set[str] = set()
        self._children: list[Leaves] = []

    def __contains__(self, key: str) -> bool:
        return key in self._content

    def get(self, key: str, absent: Any) -> Any:
        """A key that not every case has."""
        return self[key] if key in self._content else absent

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __getitem__(self, key: str) -> Any:
        require(key in self._content, f"{self.label} has no {key}")
        self._used.add(key)
        return self._content[key]

    def whole_number(self, key: str) -> int:
        """An integer."""
        value = self[key]
        require(isinstance(value, int) and not isinstance(value, bool), f"{self.label} {key}: {value!r} is no integer")
        return int(value)

    def inside(self, key: str) -> Leaves:
        """The object under a key, with a ledger of its own."""
        child = Leaves(self[key], f"{self.label}/{key}")
        self._children.append(child)
        return child

    def expect(self, key: str, got: object) -> None:
        """Compare exactly."""
        want = self[key]
        require(got == want, f"{self.label} {key}: {got!r} is not {want!r}")

    def unused(self) -> list[str]:
        """Keys that nobody took, here and below."""
        own = [f"{self.label}: {key}" for key in self._content if key not in self._used]
        return own + [name for child in self._children for name in child.unused()]


class Sources:
    """The files of one case, opened once each."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self.files = files
        self._open: dict[Path, Arrays | Leaves | None] = {}

    def arrays(self, path: Path) -> Arrays:
        """A file of arrays."""
        if path not in self._open:
            self._open[path] = Arrays(path)
        opened = self._open[path]
        if not isinstance(opened, Arrays):
            raise TypeError(f"{path} was opened as something else")
        return opened

    def json(self, path: Path) -> Leaves:
        """A file that holds one JSON object."""
        if path not in self._open:
            self._open[path] = Leaves(json.loads(path.read_text(encoding="utf-8")), path.name)
        opened = self._open[path]
        if not isinstance(opened, Leaves):
            raise TypeError(f"{path} was opened as something else")
        return opened

    def whole(self, *paths: Path) -> None:
        """These files were read by the code under test; it answers for all of their content."""
        for path in paths:
            self._open.setdefault(path, None)

    def unused(self) -> list[str]:
        """Files, arrays and keys that nobody looked at."""
        missed = [path.name for path in self.files if path not in self._open]
        return missed + [name for opened in self._open.values() if opened is not None for name in opened.unused()]


@contextmanager
def every_array_used(files: tuple[Path, ...]) -> Iterator[Sources]:
    """Sources whose every file, array and key must have been looked at when the block ends."""
    sources = Sources(files)
    yield sources
    require(not (missed := sources.unused()), f"nobody checked {missed}")


def read_manifest(root: Path) -> dict[str, Any]:
    """MANIFEST.json of a folder of vectors."""
    path = root / "MANIFEST.json"
    require(path.is_file(), f"{root} has no MANIFEST.json")
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return manifest


def check_integrity(root: Path, family: str) -> None:
    """The family's files are exactly the manifest's, with its sizes, sha256 and array shapes."""
    listed = {name: entry for name, entry in read_manifest(root).items() if name.startswith(f"{family}/")}
    folder = root / family
    found = {path.relative_to(root).as_posix() for path in folder.rglob("*") if path.is_file()}
    require(folder.is_dir(), f"family {family} is missing in {root}")
    require(bool(found), f"family {family} is empty in {root}")
    require(found == set(listed), f"{family}: files and MANIFEST.json disagree on {sorted(found ^ set(listed))}")
    for name, entry in listed.items():
        content = (root / name).read_bytes()
        require(len(content) == entry["bytes"], f"{name} has {len(content)} bytes, MANIFEST.json says {entry['bytes']}")
        digest = hashlib.sha256(content).hexdigest()
        require(digest == entry["sha256"], f"{name} has sha256 {digest}, MANIFEST.json says {entry['sha256']}")
        if "arrays" in entry:
            names = set(Arrays(root / name).names())
            require(names == set(entry["arrays"]), f"{name}: arrays and MANIFEST.json disagree")
