"""Weights as safetensors, and a training's whole state."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from src.core.errors import ArtefactError
from src.core.paths import write_bytes

State = dict[str, Tensor]


def snapshot(module: nn.Module) -> State:
    """A detached copy of the trainable parameters and buffers, on their device.

    Frozen parameters (a language model's) are left out under every name that they have, and so is what a quantised
    layer adds to its state: they cannot change, and a copy would double the memory. A trainable parameter of two names
    (a tied head) is kept under the first.
    """
    kept = {name for name, value in module.named_parameters() if value.requires_grad}
    kept |= {name for name, _ in module.named_buffers()}
    return {name: value.detach().clone() for name, value in module.state_dict().items() if name in kept}


def restore(module: nn.Module, state: State) -> None:
    """Load what `snapshot` took; raises ``ArtefactError`` when it names other parameters."""
    unexpected = module.load_state_dict(state, strict=False).unexpected_keys
    if unexpected:
        raise ArtefactError.one("weights", unexpected[:5], "do not belong to this model")


def save_weights(path: Path, state: State) -> None:
    """Write tensors atomically as safetensors."""
    write_bytes(path, save({name: value.detach().cpu().contiguous() for name, value in state.items()}))


def load_weights(path: Path, device: torch.device | str = "cpu") -> State:
    """Read a safetensors file; raises ``ArtefactError`` when it is missing or damaged."""
    try:
        weights: State = load_file(path, device=str(device))
    except FileNotFoundError:
        raise ArtefactError.one("weights", str(path), "is missing") from None
    except (SafetensorError, OSError) as error:
        raise ArtefactError.one("weights", str(path), f"cannot be read ({error})", "run the stage again") from None
    return weights


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
        """Nothing."""
        return None

    def save(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


def pack(state: Mapping[str, Any], identity: str) -> bytes:
    """A training's state and the fingerprint of what determines it, as bytes (numbers, text and tensors only)."""
    buffer = io.BytesIO()
    torch.save({"identity": identity, "state": dict(state)}, buffer)
    return buffer.getvalue()


def unpack(content: bytes, identity: str, source: str) -> Mapping[str, Any]:
    """What `pack` wrote; raises ``ArtefactError`` for other bytes, and for a state of another identity."""
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        belongs, state = found["identity"], found["state"]
    except (RuntimeError, OSError, ValueError, EOFError, TypeError, KeyError, UnpicklingError) as error:
        rule = f"is damaged ({type(error).__name__})"
        raise ArtefactError.one("checkpoint", source, rule, "remove it: that training starts again") from None
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
        """As `Checkpoint.load`."""
        if not self.path.is_file():
            return None
        return unpack(self.path.read_bytes(), self.identity, str(self.path))

    def save(self, state: Mapping[str, Any]) -> None:
        """As `Checkpoint.save`."""
        write_bytes(self.path, pack(state, self.identity))
