"""Weights in and out of memory and files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from src.core.checkpoints import FileCheckpoint, load_weights, pack, restore, save_weights, snapshot, unpack
from src.core.errors import ArtefactError, DamagedArtefact
from tests.memory_maps import lies_in


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


@pytest.mark.skipif(sys.platform != "linux", reason="reads how Linux tells of a process's memory")
def test_weights_are_mapped_and_nobody_writes_into_the_file(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_weights(file, {"a": torch.zeros(3, 4)})
    loaded = load_weights(file)["a"]
    # trials of a search read the same scores of gigabytes: a copy for each would be more than a machine has
    assert lies_in(loaded, file)
    loaded += 1
    assert torch.equal(load_weights(file)["a"], torch.zeros(3, 4))


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


# ---------------------------------------------------------------------------------------------------------- damage

STATE = {
    "bias": torch.tensor([0.5, -1.0, 3.0]),
    "half": torch.arange(6.0).reshape(2, 3).to(torch.bfloat16),
    "rows": torch.arange(4),
    "weight": torch.arange(12.0).reshape(3, 4),
}


def damaged(content: bytes, random: Random) -> bytes:
    """The same bytes with one damage: a flipped bit, another byte, a piece lost, doubled, zeroed, or cut off."""
    at, length = random.randrange(len(content)), random.randrange(1, 9)
    before, piece, after = content[:at], content[at : at + length], content[at + length :]
    return random.choice(
        [
            before + bytes([content[at] ^ 1 << random.randrange(8)]) + content[at + 1 :],
            before + bytes([random.randrange(256)]) + content[at + 1 :],
            before + after,
            before + piece + piece + after,
            before + bytes(len(piece)) + after,
            before,
        ]
    )


def equal(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> bool:
    """Whether two states agree in names, types, shapes and bits."""
    return found.keys() == wanted.keys() and all(
        found[name].dtype == wanted[name].dtype and torch.equal(found[name], wanted[name]) for name in wanted
    )


def test_no_damage_to_weights_goes_unseen(tmp_path: Path) -> None:
    file, random, loaded = tmp_path / "w.safetensors", Random(0), 0
    save_weights(file, STATE)
    whole = file.read_bytes()
    assert equal(load_weights(file), STATE)
    for _ in range(1000):
        file.write_bytes(damaged(whole, random))
        try:
            found = load_weights(file)
        except ArtefactError:
            continue
        loaded += 1
        assert equal(found, STATE)
    # what changes nothing, or only the name of the fingerprint's key
    assert loaded < 100


def test_weights_of_another_program_have_no_fingerprint_and_it_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    assert equal(load_weights(tmp_path / "w.safetensors"), STATE)
    assert "w.safetensors has no fingerprint" in caplog.text


def test_no_damage_to_a_packed_state_goes_unseen() -> None:
    random, whole = Random(0), pack({"epoch": 3, "module": STATE}, "one")
    for _ in range(1000):
        content = damaged(whole, random)
        if content == whole:
            continue
        with pytest.raises(DamagedArtefact):
            unpack(content, "one", "file")


def test_a_damaged_checkpoint_is_set_aside_and_the_training_starts_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = FileCheckpoint(tmp_path / "teacher.pt", "one")
    checkpoint.save({"epoch": 3})
    whole = checkpoint.path.read_bytes()
    checkpoint.path.write_bytes(whole[:50] + b"x" + whole[51:])
    assert checkpoint.load() is None
    assert (tmp_path / "teacher.pt.damaged").read_bytes()[50:51] == b"x"
    assert f"it is kept as {tmp_path / 'teacher.pt.damaged'}, and the training starts again" in caplog.text
    assert checkpoint.load() is None
    checkpoint.save({"epoch": 1})
    assert checkpoint.load() == {"epoch": 1}


def test_a_checkpoint_of_another_training_stays_where_it_is(tmp_path: Path) -> None:
    FileCheckpoint(tmp_path / "teacher.pt", "one").save({"epoch": 3})
    with pytest.raises(ArtefactError, match="another model, data or configuration"):
        FileCheckpoint(tmp_path / "teacher.pt", "two").load()
    assert FileCheckpoint(tmp_path / "teacher.pt", "one").load() == {"epoch": 3}
