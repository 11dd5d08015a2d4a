"""Teacher outputs meet training rows by example_id; DLLM2Rec's three files in and out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from src.core.errors import ArtefactError, DataError
from src.data.teacher_outputs import TeacherOutputs
from src.distill.data_bridge import (
    CONFIDENCE_FILE,
    EMBEDDING_FILE,
    RANKING_FILE,
    TeachingRows,
    align,
    export_dllm2rec,
    import_dllm2rec,
)
from tests.fixtures import NUM_ITEMS, cycle_data, outputs_for

ROWS = np.array([30, 2, 17, 5])


def reordered(outputs: TeacherOutputs, order: NDArray[np.int64]) -> TeacherOutputs:
    """The same labels, stored in another order."""
    return replace(
        outputs,
        example_id=outputs.example_id[order],
        candidates=outputs.candidates[order],
        scores=outputs.scores[order],
        distances=outputs.distances[order],
        sequence_embedding=outputs.sequence_embedding[order],
    )


def seen_by(teaching: TeachingRows, rows: int) -> list[torch.Tensor]:
    """Everything that training rows read."""
    numbers = torch.arange(rows)
    return [teaching.labelled(numbers), *teaching.ranking(numbers), teaching.embedding(numbers)]


def test_each_row_reads_its_own_label() -> None:
    train = cycle_data().train
    outputs = outputs_for(train, ROWS)
    teaching = align(outputs, train, 3, "cpu")
    rows = torch.from_numpy(ROWS)
    candidates, distances = teaching.ranking(rows)
    assert candidates[:, 0].tolist() == train.target[ROWS].tolist()  # this teacher names the target first
    assert candidates.shape == distances.shape == (4, 3)
    assert torch.equal(teaching.embedding(rows), torch.from_numpy(outputs.sequence_embedding))
    assert teaching.num_labelled == 4
    assert torch.nonzero(teaching.labelled(torch.arange(len(train)))).flatten().tolist() == sorted(ROWS.tolist())


def test_unlabelled_rows_read_valid_items_at_distance_zero() -> None:
    train = cycle_data().train
    teaching = align(outputs_for(train, ROWS), train, 3, "cpu")
    candidates, distances = teaching.ranking(torch.tensor([0, 1]))
    assert candidates.tolist() == [[0, 1, 2]] * 2
    assert not distances.any()
    assert not teaching.embedding(torch.tensor([0])).any()


def test_the_order_of_the_artefacts_rows_does_not_matter() -> None:
    train = cycle_data().train
    outputs = outputs_for(train, ROWS)
    straight = align(outputs, train, 4, "cpu")
    shuffled = align(reordered(outputs, np.array([2, 0, 3, 1])), train, 4, "cpu")
    assert all(map(torch.equal, seen_by(straight, len(train)), seen_by(shuffled, len(train))))


def test_the_order_of_the_training_rows_does_not_matter_either() -> None:
    train = cycle_data().train
    outputs, order = outputs_for(train, ROWS), np.random.default_rng(1).permutation(len(train))
    straight, moved = align(outputs, train, 4, "cpu"), align(outputs, train.take(order), 4, "cpu")
    for before, after in zip(seen_by(straight, len(train)), seen_by(moved, len(train)), strict=True):
        assert torch.equal(before[torch.from_numpy(order)], after)


@pytest.mark.parametrize("stray", [0, 99, 140, 500, 10**9])
def test_a_label_of_no_training_example_is_refused(stray: int) -> None:
    """Below, between, above the training ids 100..139, and one of the validation split."""
    train = cycle_data().train
    outputs = outputs_for(train, ROWS)
    foreign = replace(outputs, example_id=np.append(outputs.example_id[:-1], stray))
    with pytest.raises(ArtefactError, match=f"example_id = \\[{stray}\\]"):
        align(foreign, train, 4, "cpu")


def test_more_candidates_than_were_exported_are_refused_together_with_the_rest() -> None:
    train = cycle_data().train
    outputs = outputs_for(train, ROWS, top_n=4)
    foreign = replace(outputs, example_id=outputs.example_id + 1000)
    with pytest.raises(ArtefactError, match=r"(?s)candidate_topk = 5.*teacher\.export\.top_n.*example_id"):
        align(foreign, train, 5, "cpu")


def test_export_then_import_gives_the_same_teaching(tmp_path: Path) -> None:
    data = cycle_data()
    everything = np.random.default_rng(0).permutation(len(data.train))
    outputs = outputs_for(data.train, everything)
    export_dllm2rec(tmp_path / "files", outputs, data.train)
    imported = import_dllm2rec(tmp_path / "files", data)
    before, after = align(outputs, data.train, 4, "cpu"), align(imported, data.train, 4, "cpu")
    rows = torch.arange(len(data.train))
    assert all(map(torch.equal, before.ranking(rows), after.ranking(rows)))
    assert bool(after.labelled(rows).all())
    assert torch.equal(before.item_embedding, after.item_embedding)


def test_exported_files_hold_one_line_a_training_row_in_their_order(tmp_path: Path) -> None:
    data = cycle_data()
    order = np.arange(len(data.train))[::-1].copy()
    export_dllm2rec(tmp_path / "files", outputs_for(data.train, order, top_n=3), data.train)
    lines = (tmp_path / "files" / RANKING_FILE).read_text(encoding="utf-8").splitlines()
    assert [int(line.split()[0]) for line in lines] == data.train.target.tolist()
    assert all(word.isdigit() for word in lines[0].split())
    table = torch.load(tmp_path / "files" / EMBEDDING_FILE, weights_only=True)
    assert table.shape == (NUM_ITEMS, 3)


def test_a_partly_labelled_split_cannot_be_exported(tmp_path: Path) -> None:
    data = cycle_data()
    with pytest.raises(ArtefactError, match=r"36 rows without a label.*teacher\.export\.budget"):
        export_dllm2rec(tmp_path / "files", outputs_for(data.train, ROWS), data.train)
    assert not (tmp_path / "files").exists()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """DLLM2Rec's three files of the cycle data."""
    data = cycle_data()
    export_dllm2rec(tmp_path / "files", outputs_for(data.train, np.arange(len(data.train))), data.train)
    return tmp_path / "files"


def test_ids_in_float_notation_are_read(files: Path) -> None:
    path = files / RANKING_FILE
    wanted = import_dllm2rec(files, cycle_data()).candidates
    path.write_text("\n".join(" ".join(f"{item}.0" for item in row) for row in wanted.tolist()), encoding="utf-8")
    assert (import_dllm2rec(files, cycle_data()).candidates == wanted).all()


def change_line(path: Path, number: int, text: str | None) -> None:
    """Replace or remove a line, counted from one."""
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[number - 1 : number] = [] if text is None else [text]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "line", "text", "message"),
    [
        (RANKING_FILE, 3, "1 2 three 4", r"myrank_train\.txt:3.*numbers only"),
        (RANKING_FILE, 5, "1 2 3", r"myrank_train\.txt:5 = 3: must hold 4 numbers"),
        (RANKING_FILE, 2, "1 2 3 4.5", r"myrank_train\.txt:2.*whole item ids"),
        (RANKING_FILE, 7, f"1 2 3 {NUM_ITEMS}", r"outside the catalogue 0\.\.11"),
        (RANKING_FILE, 4, None, r"one line for each of 40 training rows"),
        (CONFIDENCE_FILE, 9, "0.1 0.2 0.3 -0.4", r"distance is a finite number"),
        (CONFIDENCE_FILE, 9, "0.1 0.2 nan 0.4", r"must hold finite numbers only"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(
    files: Path, name: str, line: int, text: str | None, message: str
) -> None:
    change_line(files / name, line, text)
    with pytest.raises(DataError, match=message):
        import_dllm2rec(files, cycle_data())


@pytest.mark.parametrize("name", [RANKING_FILE, CONFIDENCE_FILE, EMBEDDING_FILE])
def test_a_missing_file_is_named(files: Path, name: str) -> None:
    (files / name).unlink()
    with pytest.raises(DataError, match=f"{name}.*is missing"):
        import_dllm2rec(files, cycle_data())


class _Payload:
    """What a hostile pickle does when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, ("owned", "w"))


@pytest.mark.parametrize("content", [b"no pickle", b"", _Payload(), {"table": torch.ones(2)}, torch.ones(3)])
def test_an_embedding_file_that_is_no_table_is_refused_and_runs_nothing(
    files: Path, content: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    path = files / EMBEDDING_FILE
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(DataError, match=r"all_embeddings\.pt"):
        import_dllm2rec(files, cycle_data())
    assert not (files / "owned").exists()


def test_imported_outputs_carry_the_datas_fingerprints(files: Path) -> None:
    data = cycle_data()
    fingerprints = import_dllm2rec(files, data).manifest["fingerprints"]
    assert {name: fingerprints[name] for name in data.fingerprints()} == data.fingerprints()
