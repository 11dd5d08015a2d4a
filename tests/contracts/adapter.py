"""What every adapter owes to the rest of the program. A user's own adapter runs the same suite::

from tests.contracts.adapter import AdapterContract

class TestMyAdapter(AdapterContract):
    def make(self, folder: Path, changed: bool) -> DatasetSettings:
        write_my_files(folder, changed)
        return DatasetSettings(adapter="my_package.my_module:factory", root=folder, name="mine")
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from src.core.errors import ConfigError
from src.data.adapters import find_adapter
from src.data.dataset import format_statistics, load_dataset
from src.data.examples import Examples, SequenceData
from src.data.interactions import Interactions
from src.data.pre_split import PreSplit
from src.data.settings import DatasetSettings


def all_splits(data: SequenceData, folder: Path) -> list[Examples]:
    """Training, validation and (opened for this purpose) test examples."""
    return [data.train, data.validation, data.test.open("contract test", folder / "opened.jsonl")]


class AdapterContract:
    """Subclass in a test module, name it ``Test...``, and say in `make` how a small source is written."""

    def make(self, folder: Path, changed: bool) -> DatasetSettings:
        """Write a small source into an empty folder (with one interaction altered where ``changed``), and name it."""
        raise NotImplementedError

    def test_it_gives_a_log_or_a_ready_split(self, tmp_path: Path) -> None:
        settings = self.make(tmp_path, False)
        adapter = find_adapter(settings.adapter)
        source = adapter.load(settings)
        assert isinstance(source, (Interactions, PreSplit))
        assert adapter.is_pre_split(settings) == isinstance(source, PreSplit)

    def test_ids_and_padding(self, tmp_path: Path) -> None:
        data = load_dataset(self.make(tmp_path, False))
        assert data.id_map.padding_id == data.num_items
        for examples in all_splits(data, tmp_path):
            assert len(examples) > 0
            assert examples.history.shape[1] == data.history_length
            assert set(np.unique(examples.target)) <= set(range(data.num_items))
            for history, length in zip(examples.history, examples.length, strict=True):
                assert (history[:length] < data.num_items).all()
                assert (history[:length] >= 0).all()
                assert (history[length:] == data.num_items).all()

    def test_example_ids_are_unique_over_all_splits(self, tmp_path: Path) -> None:
        data = load_dataset(self.make(tmp_path, False))
        ids = np.concatenate([examples.example_id for examples in all_splits(data, tmp_path)])
        assert len(np.unique(ids)) == len(ids)

    def test_the_same_source_gives_the_same_fingerprints(self, tmp_path: Path) -> None:
        first, second, changed = tmp_path / "a", tmp_path / "b", tmp_path / "c"
        for folder in (first, second, changed):
            folder.mkdir()
        one = load_dataset(self.make(first, False)).fingerprints()
        assert load_dataset(self.make(second, False)).fingerprints() == one
        other = load_dataset(self.make(changed, True)).fingerprints()
        assert other["dataset"] != one["dataset"]
        assert other["split"] != one["split"]

    def test_raw_ids_are_text_and_stand_for_one_item_each(self, tmp_path: Path) -> None:
        id_map = load_dataset(self.make(tmp_path, False)).id_map
        assert all(isinstance(raw, str) and raw for raw in id_map.raw_ids)
        assert len(set(id_map.raw_ids)) == id_map.num_items
        assert id_map.texts == id_map.titles

    def test_statistics_count_what_is_there(self, tmp_path: Path) -> None:
        data = load_dataset(self.make(tmp_path, False))
        numbers = data.statistics
        assert (numbers.train, numbers.validation, numbers.test) == (
            len(data.train),
            len(data.validation),
            len(data.test),
        )
        assert numbers.items == data.num_items
        text = format_statistics(data)
        for label in ("users", "items", "interactions", "density", "train", "validation", "test"):
            assert label in text

    def test_a_smaller_window_keeps_the_latest_items(self, tmp_path: Path) -> None:
        settings = self.make(tmp_path, False)
        wide, narrow = load_dataset(settings), load_dataset(replace(settings, window=2))
        assert (narrow.train.example_id == wide.train.example_id).all()
        for full, length, short, kept in zip(
            wide.train.history, wide.train.length, narrow.train.history, narrow.train.length, strict=True
        ):
            assert kept == min(length, 2)
            assert short[:kept].tolist() == full[length - kept : length].tolist()

    def test_what_it_does_not_read_is_refused(self, tmp_path: Path) -> None:
        settings = self.make(tmp_path, False)
        named = find_adapter(settings.adapter).reads
        assert named <= {field.name for field in fields(DatasetSettings)}
        if "sample_seed" not in named:
            with pytest.raises(ConfigError, match=r"dataset.sample_seed = 1: is not read by"):
                load_dataset(replace(settings, sample_seed=1))

    def test_the_source_is_left_as_it_is(self, tmp_path: Path) -> None:
        settings = self.make(tmp_path, False)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        load_dataset(settings)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
