"""Facts of a dataset, by hand; counts alone of the sealed test split; and the command that prints them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from src.data.adapters.table import from_tables
from src.data.dataset import load_dataset, split_source
from src.data.describe import Description, describe, format_description
from src.data.examples import SealedExamples, SequenceData
from src.data.settings import DatasetSettings
from src.data.tables import from_memory
from src.exp.describe import ENTRY
from tests.data.toy_sources import write_dllm2rec, write_table

SETTINGS = DatasetSettings(
    adapter="table", name="log", root=Path("/nowhere"), min_users=1, min_items=2, min_history=1, window=3,
    train_share=0.5, validation_share=0.25,
)  # fmt: skip


def data_of(rows: list[tuple[str, str, int]], titles: dict[str, str] | None = None) -> SequenceData:
    log = pd.DataFrame(rows, columns=["user", "item", "time"])
    items = None if titles is None else pd.DataFrame({"item": list(titles), "title": list(titles.values())})
    tables = from_memory("log", log), None if items is None else from_memory("items", items)
    return split_source(from_tables(*tables, SETTINGS), SETTINGS)


#: Users u and v do a, b, … in turn; w comes at the end, with an item that is new. Targets in time: b b | a c | d, x y.
ROWS = [
    ("u", "a", 0), ("v", "a", 0), ("u", "b", 10), ("v", "b", 10), ("u", "a", 30), ("v", "c", 40), ("u", "d", 50),
    ("w", "a", 60), ("w", "x", 70), ("u", "e", 70), ("v", "f", 80), ("w", "y", 90),
]  # fmt: skip


def facts() -> Description:
    return describe(data_of(ROWS))


def test_by_hand() -> None:
    # nine targets: train u b 10, v b 10, u a 30, v c 40; validation u d 50, w x 70; test u e 70, v f 80, w y 90
    told = facts()
    assert (told.statistics.train, told.statistics.validation, told.statistics.test) == (4, 2, 3)
    assert told.repeated == 1 / 6  # u's a
    assert told.ties == 0.0
    assert told.crowded == 2 / 6  # the two b
    assert told.per_user is not None
    assert (told.per_user.least, told.per_user.middle, told.per_user.most) == (1, 2, 3)
    assert told.per_item is not None
    assert (told.per_item.least, told.per_item.middle, told.per_item.most) == (1, 1, 2)
    assert told.gaps is not None
    assert (told.gaps.least, told.gaps.most) == (20, 30)  # u 20, 20; v 30
    assert told.never_targets == 3  # e, f, y
    assert (told.validation.targets, told.validation.targets_of_new_items) == (2, 2)
    assert (told.validation.users, told.validation.new_users) == (2, 1)
    assert (told.test.targets, told.test.targets_of_new_items, told.test.items, told.test.new_items) == (3, 3, 3, 3)
    assert (told.test.users, told.test.new_users) == (3, 1)


def test_what_is_warned_of() -> None:
    notes = "\n".join(facts().warnings)
    assert "17% of all targets stand in their own history" in notes
    assert "100% of all test targets are items that are never a training target" in notes
    assert "the test split has 3 targets" in notes
    assert "items have no title" in notes
    assert "share" not in notes


def test_a_log_without_order_is_told() -> None:
    told = describe(data_of([(user, item, 0) for user in "uvw" for item in "abcdef"]))
    assert told.ties == 10 / 11  # eleven of fifteen targets come before the test split; the third user has one
    assert (
        "91% of all targets share user and time with another one: what came first is the file's order"
        in (told.warnings[0])
    )
    coarse = describe(data_of([(user, item, time) for time, item in enumerate("abcdef") for user in "uvw"]))
    assert coarse.ties == 0.0
    assert "share their time with another one: times are coarse" in coarse.warnings[0]


def test_titles_that_several_items_have() -> None:
    titles = dict.fromkeys("abcdef", "Same") | {"x": "X", "y": ""}
    told = describe(data_of(ROWS, titles))
    assert (told.untitled, told.alike) == (1, 5)
    assert "5 items have the title of another item" in "\n".join(told.warnings)


def test_a_source_without_users_and_a_clock(tmp_path: Path) -> None:
    told = describe(load_dataset(write_dllm2rec(tmp_path)))
    assert (told.ties, told.crowded, told.gaps, told.per_user, told.test.users) == (None, None, None, None, None)
    text = format_description(told)
    assert "not named by the source" in text
    assert "time between" not in text


def test_the_test_split_stays_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told of the test split are counts, and nothing opens it."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(SealedExamples, "open", refuse)
    told = describe(load_dataset(write_table(tmp_path)))
    assert {type(value) for value in vars(told.test).values()} == {int}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path)
    assert ENTRY.execute(["dataset=table", f"dataset.root={tmp_path}", "dataset.name=toy"]) == 0
    out = capsys.readouterr().out
    for label in ("user = customer", "interactions", "history length", "new in test", "note: the test split has"):
        assert label in out
    assert ENTRY.execute(["dataset=table", f"dataset.root={tmp_path}/none"]) == 2
    assert "does not exist" in capsys.readouterr().out
    assert ENTRY.execute(["--help", "dataset"]) == 0
    assert "dataset.columns.user" in capsys.readouterr().out
