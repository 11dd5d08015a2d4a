"""Labelling: what is said about which row, and in which order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from src.core.errors import ConfigError, OutOfMemory, TrainingFailed
from src.data.examples import Examples
from src.data.teacher_outputs import load_teacher_outputs, save_teacher_outputs
from src.data.tensor_examples import TensorExamples
from src.teacher.ilora_model import ILoRATeacher
from src.teacher.interfaces import TeacherForward
from src.teacher.labelling.labels import rank, select_rows
from src.teacher.settings import ExportSettings, Select
from tests.fixtures import NUM_ITEMS, cycle_data, cycle_examples
from tests.teacher.builders import WIDTH, label, teacher_of


def ranks_of(teacher: ILoRATeacher, examples: Examples, batch_size: int, mask_history: bool = False) -> Tensor:
    return rank(teacher, TensorExamples.of(examples, teacher.device), batch_size, mask_history)


@pytest.mark.parametrize("select", ["random", "most_recent"])
def test_a_sample_of_rows_keeps_what_a_smaller_one_had(select: Select) -> None:
    train = cycle_examples(40, 100).take(np.random.default_rng(0).permutation(40))
    few, many = (select_rows(train, count, select, np.random.default_rng(1)) for count in (5, 12))
    assert set(few.tolist()) < set(many.tolist())
    assert (np.diff(many) > 0).all()
    if select == "most_recent":
        assert sorted(train.timestamp[few].tolist()) == [35.0, 36.0, 37.0, 38.0, 39.0]


def test_labels_are_the_teachers_own_ranking_row_by_row(llm: Path, tmp_path: Path) -> None:
    teacher, data = teacher_of(llm), cycle_data()
    rows = np.array([3, 4, 11, 12, 38])
    outputs = label(teacher, data, rows, ExportSettings(top_n=4, batch_size=2))
    assert outputs.example_id.tolist() == data.train.example_id[rows].tolist()
    for place, row in enumerate(rows.tolist()):
        history, length = (
            torch.from_numpy(column[row : row + 1]) for column in (data.train.history, data.train.length)
        )
        forward = teacher(history, length)
        wanted = forward.logits.log_softmax(dim=1)[0].topk(4)
        assert outputs.candidates[place].tolist() == wanted.indices.tolist()
        np.testing.assert_allclose(outputs.scores[place], wanted.values.detach().numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(outputs.distances[place], -outputs.scores[place])
        np.testing.assert_allclose(
            outputs.sequence_embedding[place], forward.sequence_embedding[0].detach().numpy(), rtol=1e-4, atol=1e-5
        )
    assert outputs.item_embedding.shape == (NUM_ITEMS, WIDTH)
    save_teacher_outputs(tmp_path / "outputs", outputs, data.id_map)
    expected = {**data.fingerprints(), **teacher.fingerprints()}
    assert len(load_teacher_outputs(tmp_path / "outputs", expected, NUM_ITEMS)) == 5


def test_a_sure_teacher_has_distances_of_zero_not_below(llama: Path) -> None:
    teacher = teacher_of(llama)
    with torch.no_grad():
        teacher.head.bias[0] = 1000.0
    outputs = label(teacher, cycle_data(), np.arange(3), ExportSettings(top_n=1))
    assert outputs.distances.tolist() == [[0.0]] * 3
    assert not np.signbit(outputs.distances).any()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_ranks_come_back_in_order_whatever_the_batch(llm: Path, batch_size: int) -> None:
    teacher, examples = teacher_of(llm), cycle_examples(12, 0)
    logits = teacher(torch.from_numpy(examples.history), torch.from_numpy(examples.length)).logits
    own = logits.gather(1, torch.from_numpy(examples.target).unsqueeze(1))
    assert torch.equal(ranks_of(teacher, examples, batch_size), (logits >= own).sum(dim=1))


def test_seen_items_can_be_masked(llama: Path) -> None:
    teacher, examples = teacher_of(llama), cycle_examples(12, 0)
    assert (ranks_of(teacher, examples, 4, mask_history=True) <= ranks_of(teacher, examples, 4)).all()
    assert (ranks_of(teacher, examples, 4, mask_history=True) < ranks_of(teacher, examples, 4)).any()


def test_scores_that_are_not_finite_never_pass_as_ranks(llama: Path) -> None:
    teacher = teacher_of(llama)
    with torch.no_grad():
        teacher.head.bias[0] = float("nan")
    with pytest.raises(TrainingFailed, match="not finite"):
        ranks_of(teacher, cycle_examples(3, 0), 4)


def test_more_items_than_the_catalogue_has_are_refused(llama: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher.export.top_n = 13: must not exceed the catalogue's 12"):
        label(teacher_of(llama), cycle_data(), np.arange(3), ExportSettings(top_n=13))


def test_labelling_switches_dropout_off(llama: Path) -> None:
    teacher = teacher_of(llama)
    quiet = ranks_of(teacher, cycle_examples(6, 0), 4)
    assert torch.equal(ranks_of(teacher.train(), cycle_examples(6, 0), 4), quiet)
    assert not teacher.training


def hungry(teacher: ILoRATeacher, most: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The teacher runs out of memory above so many prompts at once; returns how many it was asked."""
    asked, real = list[int](), teacher.forward

    def forward(history: Tensor, length: Tensor) -> TeacherForward:
        asked.append(len(history))
        said = real(history, length)
        if len(history) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return said

    monkeypatch.setattr(teacher, "forward", forward)
    return asked


def test_out_of_memory_halves_the_batch_and_changes_no_label(
    llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    teacher, rows, settings = teacher_of(llama), np.arange(10), ExportSettings(top_n=4, batch_size=8)
    whole = label(teacher, cycle_data(), rows, settings)
    asked = hungry(teacher, 3, monkeypatch)
    with caplog.at_level("INFO", logger="src.core.memory"):
        found = label(teacher, cycle_data(), rows, settings)
    assert asked == [8, 4, 2, 2, 2, 2, 2]
    assert [record.levelname for record in caplog.records if "out of memory" in record.message] == [
        "WARNING",
        "INFO",
    ]
    assert "teacher.export.batch_size was 8" in caplog.text
    assert found.candidates.tolist() == whole.candidates.tolist()
    for name in ("scores", "distances", "sequence_embedding"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-4, atol=1e-5)


def test_a_prompt_that_does_not_fit_alone_ends_the_labelling(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = teacher_of(llama)
    hungry(teacher, 0, monkeypatch)
    with pytest.raises(OutOfMemory, match=r"a single row at once .*teacher.quantise=4bit"):
        ranks_of(teacher, cycle_examples(3, 0), 4)
