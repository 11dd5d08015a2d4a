"""A stage whose numbers change gets another key: a cache must not give what today's code would not make."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.pipeline.versions import VERSIONS
from tests.pipeline.stage_numbers import TEACHERS, Measured, anew, kind_of, load_record, measure, verdict

BEFORE = Measured("key", {"train_loss": 2.0, "head direction": 0.5})
CHANGED = {"train_loss": 2.1, "head direction": 0.5}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Measured]:
    """What the stages come to now."""
    return measure(tmp_path_factory.mktemp("stages"))


def test_every_stages_numbers_are_those_of_its_version(found: dict[str, Measured]) -> None:
    recorded = load_record()
    wrong = [verdict(name, recorded.get(name), entry) for name, entry in found.items()]
    assert "\n".join(text for text in wrong if text) == ""


def test_every_stage_that_has_a_version_is_measured_and_none_besides(found: dict[str, Measured]) -> None:
    assert {kind_of(name) for name in found} == VERSIONS.keys()
    assert load_record().keys() == found.keys()


def test_a_raised_version_changes_the_keys_of_its_stage_and_of_those_after_it(
    found: dict[str, Measured], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.pipeline.stage_numbers.STUDENTS", {})
    monkeypatch.setattr("tests.pipeline.stage_numbers.TEACHERS", {"item_ce": TEACHERS["item_ce"]})
    monkeypatch.setitem(VERSIONS, "tiny_llm", VERSIONS["tiny_llm"] + 1)
    again = measure(tmp_path)
    assert {name for name in again if again[name].key != found[name].key} == {
        "item_ce/tiny_llm",
        "item_ce/teacher",
        "item_ce/teacher_outputs",
        "other_teachers/tiny_llm",
        "other_teachers/embeddings of titles",
    }
    assert all(again[name].numbers == found[name].numbers for name in again)


@pytest.mark.parametrize("numbers", [{"train_loss": 2.001, "head direction": 0.501}, BEFORE.numbers])
@pytest.mark.parametrize("key", ["key", "another"])
def test_numbers_that_are_close_are_fine_whatever_their_key(numbers: dict[str, float], key: str) -> None:
    found = Measured(key, numbers)
    assert verdict("item_ce/teacher", BEFORE, found) == ""
    assert anew({"a": BEFORE}, {"a": found}) == {"a": Measured(key, BEFORE.numbers)}


def test_changed_numbers_under_an_unchanged_key_ask_for_a_version() -> None:
    found = Measured("key", CHANGED)
    said = verdict("item_ce/teacher", BEFORE, found)
    assert "train_loss: 2.0 recorded, 2.1 found" in said
    assert "direction" not in said
    assert "raise VERSIONS['teacher'] (src/pipeline/versions.py), then python -m tests.pipeline.stage_numbers" in said
    assert "VERSIONS['student']" in verdict("item_ce/encoder", BEFORE, found)
    with pytest.raises(ValueError, match="raise VERSIONS"):
        anew({"item_ce/teacher": BEFORE}, {"item_ce/teacher": found})


def test_changed_numbers_under_a_changed_key_are_recorded_anew() -> None:
    found = Measured("another", CHANGED)
    assert "where that is meant: python -m tests.pipeline.stage_numbers" in verdict("item_ce/teacher", BEFORE, found)
    assert anew({"item_ce/teacher": BEFORE}, {"item_ce/teacher": found}) == {"item_ce/teacher": found}


def test_a_number_that_comes_or_goes_is_a_change() -> None:
    less = {"train_loss": 2.0}
    assert "head direction: 0.5 recorded, None found" in verdict("a/teacher", BEFORE, Measured("key", less))
    assert "head direction: None recorded, 0.5 found" in verdict("a/teacher", Measured("key", less), BEFORE)
