"""What is kept of the settings' descriptions: never a stale one, never a damaged one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from src.config import base_configs, descriptions
from src.config.base_configs import SCHEMAS, LazyClass, description, loaded
from src.pipeline.settings import EvaluateSettings

COMMAND = "evaluate"


class Kept:
    """A place for descriptions, the sources that they depend on, and how often settings were described."""

    def __init__(self, root: Path) -> None:
        self.cache, self.sources, self.times = root / "cache", root / "src", 0
        (self.sources / "room").mkdir(parents=True)
        (self.sources / "room" / "settings.py").write_text("width = 3\n", encoding="utf-8")

    @property
    def file(self) -> Path:
        return self.cache / f"{COMMAND}.json"

    def describe(self, schema: type) -> Any:
        self.times += 1
        return DESCRIBE(schema)


DESCRIBE = descriptions.describe_command
EXPECTED = DESCRIBE(EvaluateSettings)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    place = Kept(tmp_path)
    monkeypatch.setattr(base_configs, "CACHE", place.cache)
    monkeypatch.setattr(base_configs, "SOURCES", place.sources)
    monkeypatch.setattr(descriptions, "describe_command", place.describe)
    return place


def described() -> Any:
    """A command's description in a new process."""
    return description.__wrapped__(COMMAND)


def test_settings_are_described_once(kept: Kept) -> None:
    assert described() == described() == EXPECTED
    assert kept.times == 1
    assert [path.name for path in kept.cache.iterdir()] == [kept.file.name]


def test_what_is_described_is_what_the_settings_say() -> None:
    fields = EXPECTED["settings"]["fields"]
    assert list(fields) == ["evaluation", "runtime", "results"]
    assert EXPECTED["own"] == {"evaluate": {}}  # results have no default
    assert fields["results"]["kinds"] == {}
    assert fields["results"]["note"].startswith("finished result folders")
    assert fields["evaluation"]["about"] == "How rankings are judged."
    base = fields["evaluation"]["kinds"]["base"]["fields"]
    assert base["ks"] == {
        "note": "cut-offs K of Recall, NDCG and HitRatio",
        "about": "",
        "kinds": {},
        "default": [5, 10, 20],
    }
    assert json.loads(json.dumps(EXPECTED)) == EXPECTED


def test_a_changed_added_or_moved_source_file_is_noticed(kept: Kept) -> None:
    described()
    source = kept.sources / "room" / "settings.py"
    source.write_text("width = 4\n", encoding="utf-8")
    described()
    (kept.sources / "more.py").write_text("", encoding="utf-8")
    described()
    source.rename(source.with_name("options.py"))
    described()
    (kept.sources / "notes.txt").write_text("no source file", encoding="utf-8")
    described()
    assert kept.times == 4


def test_another_pydantic_is_noticed(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    described()
    monkeypatch.setattr("pydantic.version.VERSION", "99.0")
    described()
    assert kept.times == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"{}",
        lambda content: b"\xff\xfe",
        lambda content: content[:-1],
        lambda content: content + b" ",
        lambda content: content.replace(b"2048", b"2049"),  # another default
        lambda content: content.replace(b"a", b"b", 1),
        lambda content: content.split(b"\n", 1)[1],
    ],
)
def test_a_damaged_file_is_ignored_and_mended(kept: Kept, damage: Any) -> None:
    described()
    whole = kept.file.read_bytes()
    assert damage(whole) != whole
    kept.file.write_bytes(damage(whole))
    assert described() == EXPECTED
    assert kept.times == 2
    assert kept.file.read_bytes() == whole


def test_a_folder_in_its_place_is_left_alone(kept: Kept) -> None:
    (kept.file / "mine").mkdir(parents=True)
    assert described() == EXPECTED
    assert (kept.file / "mine").is_dir()


def test_where_nothing_can_be_written_nothing_is_kept(kept: Kept) -> None:
    kept.cache.write_text("a file", encoding="utf-8")
    assert described() == described() == EXPECTED
    assert kept.times == 2


def test_settings_are_found_by_name() -> None:
    named = LazyClass[Any]("src.pipeline.settings:EvaluateSettings")
    assert loaded(named) is loaded(EvaluateSettings) is loaded(SCHEMAS[COMMAND]) is EvaluateSettings
