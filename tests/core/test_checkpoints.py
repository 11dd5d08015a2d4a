"""Weights in and out of memory and files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from src.core.checkpoints import load_weights, restore, save_weights, snapshot
from src.core.errors import ArtefactError


def test_a_snapshot_does_not_follow_the_model() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    state = snapshot(model)
    with torch.no_grad():
        model.weight += 1
    restore(model, state)
    assert torch.equal(model.weight, before)


def test_a_snapshot_holds_buffers_and_no_frozen_parameters() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].weight.requires_grad_(False)
    names = set(snapshot(model))
    assert "0.weight" not in names
    assert {"0.bias", "1.weight", "1.running_mean"} <= names


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(ArtefactError, match="do not belong"):
        restore(nn.Linear(2, 2), {"other": torch.zeros(1)})


def test_weights_round_trip_bit_by_bit(tmp_path: Path) -> None:
    state = {"a": torch.randn(3, 4).t(), "b": torch.arange(3)}
    save_weights(tmp_path / "w.safetensors", state)
    loaded = load_weights(tmp_path / "w.safetensors")
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert loaded.keys() == state.keys()


def test_missing_and_damaged_weights_say_so(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="is missing"):
        load_weights(tmp_path / "none.safetensors")
    file = tmp_path / "w.safetensors"
    save_weights(file, {"a": torch.ones(9)})
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ArtefactError, match="cannot be read"):
        load_weights(file)


class _Tied(nn.Module):
    """A head that is the embedding under a second name, as many language models have."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(4, 2), nn.Linear(2, 4, bias=False)
        self.head.weight = self.embedding.weight
        self.embedding.weight.requires_grad_(not frozen)


def test_a_tied_parameter_is_kept_once_and_not_at_all_when_frozen() -> None:
    assert set(snapshot(_Tied(frozen=True))) == set()
    model = _Tied(frozen=False)
    state = snapshot(model)
    assert set(state) == {"embedding.weight"}
    with torch.no_grad():
        model.head.weight += 1
    restore(model, state)
    assert torch.equal(model.head.weight, state["embedding.weight"])


def test_what_a_layer_adds_to_its_state_is_not_kept() -> None:
    class Quantised(nn.Linear):
        """Like a quantised layer: its state holds more than parameters and buffers."""

        def _save_to_state_dict(self, destination: dict[str, torch.Tensor], prefix: str, keep_vars: bool) -> None:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            destination[prefix + "weight.absmax"] = torch.ones(1)

    model = nn.Sequential(Quantised(2, 2).requires_grad_(False), nn.Linear(2, 1))
    assert set(snapshot(model)) == {"1.weight", "1.bias"}
    restore(model, snapshot(model))
