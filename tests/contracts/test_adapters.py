"""What every adapter owes to the rest of the program, on a toy source in its own format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from src.data.adapters import ADAPTERS
from src.data.dataset import load_dataset
from src.data.interactions import Interactions
from src.data.settings import DatasetSettings
from tests.contracts.adapter import AdapterContract, all_splits
from tests.data.toy_sources import SOURCES, toy_sequences

SOURCE_NAMES = sorted(SOURCES)
LOGS = [name for name in SOURCE_NAMES if not name.startswith(("dllm2rec", "llara"))]
PRE_SPLIT = [name for name in SOURCE_NAMES if name not in LOGS]


def test_every_adapter_has_a_toy_source() -> None:
    assert {name.partition("-")[0] for name in SOURCES} == set(ADAPTERS)


class TestAdapter(AdapterContract):
    """Every toy source."""

    @pytest.fixture(autouse=True, params=SOURCE_NAMES)
    def _source(self, request: pytest.FixtureRequest) -> None:
        self.name: str = request.param

    def make(self, folder: Path, changed: bool) -> DatasetSettings:
        """The toy source in its format."""
        return SOURCES[self.name](folder, changed)


@pytest.mark.parametrize("name", SOURCE_NAMES)
def test_every_item_has_its_own_title(name: str, tmp_path: Path) -> None:
    data = load_dataset(SOURCES[name](tmp_path, False))
    assert data.id_map.untitled == 0
    assert len(set(data.id_map.titles)) == data.num_items
    if name != "sample":
        base = 0 if name in ("dllm2rec", "llara-names") else 1
        for index, (raw, title) in enumerate(zip(data.id_map.raw_ids, data.id_map.titles, strict=True)):
            assert title == (f"Film {index}" if base == 0 else f"The Film {index + 1}")
            assert int(raw) == (index if name == "llara-movies" else index + base)


@pytest.mark.parametrize("split", ["temporal", "leave_one_out"])
@pytest.mark.parametrize("name", LOGS)
def test_a_history_is_what_its_user_did_before(name: str, split: str, tmp_path: Path) -> None:
    settings = replace(SOURCES[name](tmp_path, False), split=split)
    source = ADAPTERS[settings.adapter].load(settings)
    assert isinstance(source, Interactions)
    raw = source.id_map.raw_ids
    told: dict[int, list[str]] = {}
    expected = {}
    order = sorted(range(len(source.users)), key=lambda row: (source.timestamps[row], row))
    for place, row in enumerate(order):
        past = told.setdefault(int(source.users[row]), [])
        if len(past) >= settings.min_history:
            expected[place] = (past[-10:], raw[source.items[row]], source.timestamps[row])
        past.append(raw[source.items[row]])
    data = load_dataset(settings)
    found = {}
    for examples in all_splits(data, tmp_path):
        for row in range(len(examples)):
            history = [data.id_map.raw_ids[item] for item in examples.history[row, : examples.length[row]]]
            target = data.id_map.raw_ids[examples.target[row]]
            found[int(examples.example_id[row])] = (history, target, examples.timestamp[row])
    assert found == expected


@pytest.mark.parametrize("name", LOGS)
def test_temporal_splits_follow_each_other_in_time(name: str, tmp_path: Path) -> None:
    data = load_dataset(SOURCES[name](tmp_path, False))
    train, validation, test = all_splits(data, tmp_path)
    for earlier, later in ((train, validation), (validation, test)):
        assert earlier.timestamp.max() <= later.timestamp.min()
        assert earlier.example_id.max() < later.example_id.min()


@pytest.mark.parametrize("name", PRE_SPLIT)
def test_rows_of_ready_made_splits_can_be_found_again(name: str, tmp_path: Path) -> None:
    data = load_dataset(SOURCES[name](tmp_path, False))
    rows = toy_sequences()
    least = 0 if name == "dllm2rec" else 3
    found = [row for row, (history, _) in enumerate(rows) if len(history) >= least]
    splits = all_splits(data, tmp_path)
    assert np.concatenate([examples.example_id for examples in splits]).tolist() == found
    assert [len(examples) for examples in splits] == [
        sum(first <= row < last for row in found) for first, last in ((0, 80), (80, 94), (94, 108))
    ]
    for examples in splits:
        for row in range(len(examples)):
            history, target = rows[examples.example_id[row]]
            assert examples.history[row, : examples.length[row]].tolist() == history
            assert examples.target[row] == target
