"""Weights as safetensors, and a training's whole state."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from src.core.data_utils import fingerprint
from src.core.errors import ArtefactError, DamagedArtefact
from src.core.logging import get_logger
from src.core.paths import write_bytes

_log = get_logger(__name__)

State = dict[str, Tensor]


def snapshot(module: nn.Module) -> State:
    """A detached copy of `changing`, on its device."""
    return {name: value.detach().clone() for name, value in changing(module).items()}


def changing(module: nn.Module) -> State:
    """The trainable parameters and buffers themselves.

    Frozen parameters (a language model's) are left out under every name that they have, and so is what a quantised
    layer adds to its state: they cannot change, and a copy would double the memory. A trainable parameter of two names
    (a tied head) is kept under the first.
    """
    kept = {name for name, value in module.named_parameters() if value.requires_grad}
    kept |= {name for name, _ in module.named_buffers()}
    return {name: value for name, value in module.state_dict().items() if name in kept}


def restore(module: nn.Module, state: State) -> None:
    """Load what `snapshot` took; raises ``ArtefactError`` when it names other parameters."""
    unexpected = module.load_state_dict(state, strict=False).unexpected_keys
    if unexpected:
        raise ArtefactError.one("weights", unexpected[:5], "do not belong to this model")


#: the key of the tensors' fingerprint in a safetensors file's metadata
_DIGEST = "fingerprint"


def _digest(tensors: State) -> str:
    return fingerprint(*(part for name in sorted(tensors) for part in (name, tensors[name])))


def save_weights(path: Path, state: State) -> None:
    """Write tensors atomically as safetensors, with their fingerprint."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    write_bytes(path, save(tensors, {_DIGEST: _digest(tensors)}))


def load_weights(path: Path, device: torch.device | str = "cpu") -> State:
    """Map a safetensors file: processes that read the same one share its memory, and writing into a tensor changes this
    process's copy of a page. A file without a fingerprint, which another program wrote, cannot be verified: it is told.

    Raises:
        ArtefactError: it is missing, cannot be read, or does not hold what was written.
    """
    try:
        with safe_open(path, "pt") as file:
            weights: State = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            wanted = (file.metadata() or {}).get(_DIGEST)
    except FileNotFoundError:
        raise ArtefactError.one("weights", str(path), "is missing") from None
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError, OverflowError) as error:
        raise DamagedArtefact.one("weights", str(path), f"cannot be read ({error})", "run the stage again") from None
    if wanted is None:
        _log.warning("%s has no fingerprint: damage to its numbers would not be seen", path)
    elif wanted != _digest(weights):
        rule = "is damaged: its tensors are not those that were written"
        raise DamagedArtefact.one("weights", str(path), rule, "run the stage again")
    return {name: value.to(device) for name, value in weights.items()}


class Checkpoint(Protocol):
    """Where a training keeps its whole state, and finds it again. The state is one nested mapping."""

    def load(self) -> Mapping[str, Any] | None:
        """The last state that was saved, tensors on the CPU; None where nothing was.

        Raises ``ArtefactError`` when the state is damaged or belongs to another training.
        """

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep a state in place of the one before, whole or not at all."""


class NoCheckpoint:
    """A training that is not meant to be resumed."""

    def load(self) -> Mapping[str, Any] | None:
        """There is no state to go on from."""
        return None

    def save(self, state: Mapping[str, Any]) -> None:
        """The state is not kept."""


#: the last bytes of a packed state, behind its SHA-256: a file that ends otherwise is no such state, or a torn one
_END = b"\nanyo checkpoint 1\n"
_TRAILER = hashlib.sha256().digest_size + len(_END)


def pack(state: Mapping[str, Any], identity: str) -> bytes:
    """A training's state and the fingerprint of what determines it, as bytes (numbers, text and tensors only)."""
    buffer = io.BytesIO()
    torch.save({"identity": identity, "state": dict(state)}, buffer)
    with buffer.getbuffer() as written:
        digest = hashlib.sha256(written).digest()
    buffer.write(digest + _END)
    return buffer.getvalue()


def unpack(content: bytes, identity: str, source: str) -> Mapping[str, Any]:
    """What `pack` wrote.

    Args:
        content: the bytes of a state.
        identity: whose state it must be.
        source: where the bytes come from, for the message.

    Raises:
        DamagedArtefact: other bytes.
        ArtefactError: a state of another identity.
    """
    again = "remove it: that training starts again"
    body, trailer = memoryview(content)[:-_TRAILER], content[-_TRAILER:]
    if trailer != hashlib.sha256(body).digest() + _END:
        raise DamagedArtefact.one("checkpoint", source, "is damaged, or of an earlier version", again)
    try:
        with torch.sparse.check_sparse_tensor_invariants():  # who has made a file can have made its checksum, too
            found = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
        belongs, state = found["identity"], found["state"]
    except (RuntimeError, OSError, ValueError, EOFError, TypeError, KeyError, UnpicklingError) as error:
        raise DamagedArtefact.one("checkpoint", source, f"is damaged ({type(error).__name__})", again) from None
    if belongs != identity:
        rule = "belongs to a training with another model, data or configuration"
        raise ArtefactError.one("checkpoint", source, rule, "remove it, or restore the configuration that made it")
    result: Mapping[str, Any] = state
    return result


@dataclass(frozen=True)
class FileCheckpoint:
    """A checkpoint in one file. ``identity`` fingerprints everything that determines the training."""

    path: Path
    identity: str

    def load(self) -> Mapping[str, Any] | None:
        """As `Checkpoint.load`; a damaged file is told and set aside, and that training starts again.

        Raises:
            ArtefactError: the state belongs to another training.
        """
        if not self.path.is_file():
            return None
        try:
            return unpack(self.path.read_bytes(), self.identity, str(self.path))
        except DamagedArtefact as error:
            kept = self.path.with_name(f"{self.path.name}.damaged")
            os.replace(self.path, kept)
            found = error.problems[0]
            _log.warning("%s %s: it is kept as %s, and the training starts again", self.path, found.rule, kept)
            return None

    def save(self, state: Mapping[str, Any]) -> None:
        """As `Checkpoint.save`."""
        write_bytes(self.path, pack(state, self.identity))
