"""Weights as safetensors with their description beside them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from src.core.errors import ArtefactError
from src.core.paths import write_bytes

State = dict[str, Tensor]


def snapshot(module: nn.Module) -> State:
    """A detached copy of the trainable parameters and buffers, on their device.

    Frozen parameters (a language model's) are left out: they cannot change, and a copy would double the memory.
    """
    frozen = {name for name, value in module.named_parameters() if not value.requires_grad}
    return {name: value.detach().clone() for name, value in module.state_dict().items() if name not in frozen}


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
