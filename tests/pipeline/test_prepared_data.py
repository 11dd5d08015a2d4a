"""A large source is read and split once; what comes out of the cache is the same data, mapped and not copied."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from src.core.errors import ConfigError, DataError
from src.data.dataset import load_dataset, source_files
from src.data.example_files import load_sequences, save_sequences
from src.data.examples import SequenceData
from src.data.settings import DatasetSettings
from src.pipeline import prepared_data as module
from src.pipeline.cache import StageCache
from src.pipeline.prepared_data import prepared_data
from tests.data.toy_sources import ITEMS, SOURCES, toy_log


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A log and titles under names of their own; item 1 has no title."""
    folder = tmp_path / "shop"
    folder.mkdir()
    lines = ["customer,sku,purchased_at,stars", *(f"c{u},s{i},{1_500_000_000 + t},{r}" for u, i, r, t in toy_log())]
    (folder / "orders.csv").write_text("\n".join(lines) + "\n")
    titles = [f"s{item},{'' if item == 1 else f'Thing {item}'}" for item in range(1, ITEMS + 1)]
    (folder / "products.csv").write_text("\n".join(["sku,title", *titles]) + "\n")
    return folder


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy log is worth keeping."""
    monkeypatch.setattr(module, "LARGE", 0)


def table(root: Path, **fields: object) -> DatasetSettings:
    return DatasetSettings(adapter="table", name="shop", root=root, **fields)  # type: ignore[arg-type]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[DatasetSettings]:
    """Every reading of the source."""
    seen: list[DatasetSettings] = []

    def counted(settings: DatasetSettings) -> SequenceData:
        seen.append(settings)
        return load_dataset(settings)

    monkeypatch.setattr(module, "load_dataset", counted)
    return seen


def same(one: SequenceData, other: SequenceData, folder: Path) -> None:
    """Every column of every split, whatever is told, and the fingerprints, computed anew."""
    assert one.fingerprints() == other.fingerprints()
    assert (one.name, one.statistics, one.id_map) == (other.name, other.statistics, other.id_map)
    opened = (one.test.open("compared", folder / "a"), other.test.open("compared", folder / "b"))
    for a, b in ((one.train, other.train), (one.validation, other.validation), opened):
        for name, column in a.columns()[0].items():
            assert np.array_equal(column, b.columns()[0][name]), name
        assert np.array_equal(a.past.items, b.past.items)
        everything = np.arange(len(a))
        assert a.take(everything).fingerprint == b.take(everything).fingerprint == a.fingerprint


def test_what_comes_out_of_the_cache_is_the_same_data(shop: Path, reads: list[DatasetSettings], tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache")
    first = prepared_data(table(shop), cache)
    again = prepared_data(table(shop), cache)
    assert len(reads) == 1
    same(first, again, tmp_path)
    same(load_dataset(table(shop)), again, tmp_path / "own")
    assert cache.records == []


def test_its_arrays_are_views_into_the_files(shop: Path, tmp_path: Path) -> None:
    data = load_dataset(table(shop))
    (tmp_path / "kept").mkdir()
    save_sequences(tmp_path / "kept", data)
    mapped = load_sequences(tmp_path / "kept")
    for array in (mapped.train.past.items, mapped.train.target, mapped.validation.timestamp):
        assert not array.flags.owndata
        assert not array.flags.writeable
    shown, _ = mapped.train.past.dense(3)
    assert np.array_equal(shown, data.train.past.dense(3)[0])


def another_row(folder: Path) -> None:
    with (folder / "orders.csv").open("a") as handle:
        handle.write("c1,s2,1500009999,5\n")


def another_title(folder: Path) -> None:
    path = folder / "products.csv"
    path.write_text(path.read_text().replace("Thing 2", "Other 2"))


@pytest.mark.parametrize("change", [another_row, another_title])
def test_a_source_that_changed_is_read_again(
    change: Callable[[Path], None], shop: Path, reads: list[DatasetSettings], tmp_path: Path
) -> None:
    cache = StageCache(tmp_path / "cache")
    before = prepared_data(table(shop), cache).fingerprints()
    change(shop)
    after = prepared_data(table(shop), cache).fingerprints()
    assert len(reads) == 2
    assert before != after == load_dataset(table(shop)).fingerprints()


def test_other_rules_are_other_data_and_another_place_is_not(
    shop: Path, reads: list[DatasetSettings], tmp_path: Path
) -> None:
    cache = StageCache(tmp_path / "cache")
    prepared_data(table(shop), cache)
    assert prepared_data(table(shop, untitled="drop"), cache).num_items == ITEMS - 1
    shutil.copytree(shop, tmp_path / "moved")
    prepared_data(table(tmp_path / "moved"), cache)
    assert len(reads) == 2


def test_code_that_changed_reads_again(
    shop: Path, reads: list[DatasetSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = StageCache(tmp_path / "cache")
    prepared_data(table(shop), cache)
    room = tmp_path / "room"
    room.mkdir()
    (room / "__init__.py").write_text("# a reader of tomorrow\n")
    monkeypatch.setattr(module.src.data, "__file__", str(room / "__init__.py"))
    prepared_data(table(shop), cache)
    assert len(reads) == 2


def test_a_damaged_file_is_built_again(shop: Path, reads: list[DatasetSettings], tmp_path: Path) -> None:
    prepared_data(table(shop), StageCache(tmp_path / "cache"))
    (file,) = (tmp_path / "cache" / "data").glob("*/train.arrow")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    data = prepared_data(table(shop), StageCache(tmp_path / "cache"))
    assert len(reads) == 2
    assert data.fingerprints() == load_dataset(table(shop)).fingerprints()


@pytest.mark.parametrize(
    "form", [name for name in SOURCES if name not in ("sample", "dllm2rec", "llara-names", "llara-movies")]
)
def test_an_adapter_names_everything_that_it_reads(form: str, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    settings = SOURCES[form](tmp_path / "whole", False)
    named = source_files(settings)
    assert named
    for file in named:
        copy = tmp_path / "named" / file.relative_to(tmp_path / "whole")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    root = tmp_path / "named" / settings.root.relative_to(tmp_path / "whole")
    assert load_dataset(replace(settings, root=root)).fingerprints() == load_dataset(settings).fingerprints()


def test_small_sources_leave_no_cache(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 1 << 20)
    prepared_data(table(shop), StageCache(tmp_path / "cache"))
    prepared_data(DatasetSettings(), StageCache(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_what_cannot_be_read_is_told_as_ever(shop: Path, tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache")
    with pytest.raises(DataError, match="does not exist"):
        prepared_data(table(shop, interactions_file="nothing.csv"), cache)
    with pytest.raises(ConfigError, match="is not read by"):
        prepared_data(table(shop, title_year=True), cache)
    (shop / "orders.csv").write_text("customer,sku,purchased_at,stars\nc1,s1,soon,5\n")
    with pytest.raises(DataError, match="neither a number nor a date"):
        prepared_data(table(shop), cache)
    assert list((tmp_path / "cache").rglob("*.arrow")) == []
