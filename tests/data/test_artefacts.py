"""Id maps, sealed splits and teacher outputs: written whole, read back equal, refused when they do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.core.errors import ArtefactError, DamagedArtefact, DataError
from src.data.examples import Examples, SealedExamples
from src.data.id_map import IdMap
from src.data.interactions import Interactions
from src.data.teacher_outputs import TeacherOutputs, load_teacher_outputs, save_teacher_outputs

ID_MAP = IdMap(("a", "b", "c"), ("Ä", "", "C"))
FINGERPRINTS = {"dataset": "d1", "split": "s1", "id_map": "i1"}


def _outputs() -> TeacherOutputs:
    return TeacherOutputs(
        example_id=np.array([7, 3]),
        candidates=np.array([[2, 0], [1, 2]]),
        scores=np.array([[2.0, 1.0], [3.0, 0.5]], np.float32),
        distances=np.array([[0.0, 1.5], [0.25, 4.0]], np.float32),
        sequence_embedding=np.ones((2, 4), np.float32),
        item_embedding=np.ones((3, 5), np.float32),
        manifest={"fingerprints": FINGERPRINTS},
    )


def test_an_id_map_survives_the_disk(tmp_path: Path) -> None:
    ID_MAP.save(tmp_path / "m.json")
    assert IdMap.load(tmp_path / "m.json") == ID_MAP
    assert (ID_MAP.num_items, ID_MAP.padding_id, ID_MAP.untitled) == (3, 3, 1)
    assert IdMap(("b", "a", "c"), ID_MAP.titles).fingerprint != ID_MAP.fingerprint
    assert IdMap(ID_MAP.raw_ids, ("Ä", "x", "C")).fingerprint != ID_MAP.fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"index": 1, "raw_id": "a", "title": ""}], "0..V-1 in order"),
        ([{"index": 0, "raw": "a", "title": ""}], "must be a list of"),
        ({"a": 1}, "must be a list of"),
        (3, "must be a list of"),
    ],
)
def test_a_damaged_id_map(content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(ArtefactError, match=message):
        IdMap.load(tmp_path / "m.json")


def test_id_maps_and_interactions_check_themselves() -> None:
    with pytest.raises(DataError, match="one title for each of 2"):
        IdMap(("a", "b"), ("x",))
    with pytest.raises(DataError, match="duplicates"):
        IdMap(("a", "a"), ("x", "y"))
    column = np.array([0, 1])
    with pytest.raises(DataError) as caught:
        Interactions("x", column, np.array([0, 3]), np.array([1.0, np.nan]), np.zeros(1, np.float32), ID_MAP)
    assert len(caught.value.problems) == 3


def test_the_test_split_is_opened_on_the_record(tmp_path: Path) -> None:
    column = np.arange(2)
    examples = Examples.of_rows(column, column, column[:, None], column * 0 + 1, column, column.astype(float))
    sealed = SealedExamples(examples)
    assert len(sealed) == 2
    assert sealed.open("first", tmp_path / "r" / "opened.jsonl") is examples
    sealed.open("second", tmp_path / "r" / "opened.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "r" / "opened.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["first", "second"]
    assert {line["test_split"] for line in lines} == {examples.fingerprint}


def test_examples_find_what_breaks_their_rules() -> None:
    column = np.arange(2)
    history, times = np.array([[0, 3], [1, 3]]), column.astype(float)
    examples = Examples.of_rows(column * 0, column, history, np.array([1, 1]), np.array([0, 3]), times)
    rules = [problem.rule for problem in examples.check(3, "train")]
    assert rules == ["is outside the catalogue 0..2", "values must be unique"]
    outside = Examples.of_rows(column, column, np.array([[4, 3], [0, 3]]), np.array([1, 1]), column, times)
    assert [problem.rule for problem in outside.check(3, "train")] == ["is outside 0..2 (padding is 3)"]
    assert [problem.value for problem in outside.check(5, "train")] == [3]


def test_teacher_outputs_survive_the_disk(tmp_path: Path) -> None:
    outputs = _outputs()
    save_teacher_outputs(tmp_path / "t", outputs, ID_MAP)
    loaded = load_teacher_outputs(tmp_path / "t", FINGERPRINTS, 3)
    for name in ("example_id", "candidates", "scores", "distances", "sequence_embedding", "item_embedding"):
        found, wanted = getattr(loaded, name), getattr(outputs, name)
        assert isinstance(found, np.memmap)
        assert found.dtype == wanted.dtype
        assert found.tolist() == wanted.tolist()
    assert loaded.manifest["rows"] == 2
    assert loaded.manifest["top_n"] == 2
    assert IdMap.load(tmp_path / "t" / "id_map.json") == ID_MAP


def test_every_mismatch_is_named(tmp_path: Path) -> None:
    save_teacher_outputs(tmp_path / "t", _outputs(), ID_MAP)
    with pytest.raises(ArtefactError) as caught:
        load_teacher_outputs(tmp_path / "t", {**FINGERPRINTS, "dataset": "d2", "id_map": "i2"}, 3)
    assert [problem.field for problem in caught.value.problems] == [
        "folder", "teacher outputs: dataset", "teacher outputs: id_map",
    ]  # fmt: skip
    assert "python -m src.exp.run_teacher" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda o: replace(o, candidates=np.array([[2, 0], [1, 3]])),
        lambda o: replace(o, example_id=np.array([7, 7])),
        lambda o: replace(o, distances=-o.distances),
        lambda o: replace(o, distances=np.full((2, 2), np.inf, np.float32)),
        lambda o: replace(o, scores=o.scores[:1]),
        lambda o: replace(o, scores=o.scores[:, :1]),
        lambda o: replace(o, candidates=np.array([[2, 0], [1, 1]])),
        lambda o: replace(o, item_embedding=o.item_embedding[:2]),
        lambda o: replace(o, item_embedding=np.full((3, 5), np.nan, np.float32)),
    ],
)
def test_outputs_that_break_the_schema_are_not_saved(
    change: Callable[[TeacherOutputs], TeacherOutputs], tmp_path: Path
) -> None:
    save_teacher_outputs(tmp_path / "t", _outputs(), ID_MAP)
    with pytest.raises(ArtefactError):
        save_teacher_outputs(tmp_path / "t", change(_outputs()), ID_MAP)
    assert len(load_teacher_outputs(tmp_path / "t", FINGERPRINTS, 3)) == 2


@pytest.mark.parametrize("name", ["scores.npy", "distances.npy", "item_embedding.npy", "id_map.json"])
def test_a_flipped_bit_in_saved_outputs_is_told(name: str, tmp_path: Path) -> None:
    save_teacher_outputs(tmp_path / "t", _outputs(), ID_MAP)
    content = bytearray((tmp_path / "t" / name).read_bytes())
    content[-3] ^= 1
    (tmp_path / "t" / name).write_bytes(bytes(content))
    with pytest.raises(DamagedArtefact, match=rf"{name}.*is damaged.* → run python -m src.exp.run_teacher"):
        load_teacher_outputs(tmp_path / "t", FINGERPRINTS, 3)


def test_unfinished_and_damaged_folders(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    with pytest.raises(ArtefactError, match="does not exist"):
        load_teacher_outputs(folder, FINGERPRINTS, 3)
    save_teacher_outputs(folder, _outputs(), ID_MAP)
    whole = (folder / "candidates.npy").read_bytes()
    (folder / "candidates.npy").write_bytes(whole[:-3])
    with pytest.raises(ArtefactError, match=r"candidates\.npy.*is damaged: its checksum is another"):
        load_teacher_outputs(folder, FINGERPRINTS, 3)
    (folder / "candidates.npy").unlink()
    with pytest.raises(ArtefactError, match=r"candidates\.npy"):
        load_teacher_outputs(folder, FINGERPRINTS, 3)
    (folder / "manifest.json").unlink()
    with pytest.raises(ArtefactError, match="did not finish"):
        load_teacher_outputs(folder, FINGERPRINTS, 3)
