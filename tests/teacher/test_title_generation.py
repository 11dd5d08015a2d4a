"""Answers where memory is short."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from src.core.errors import OutOfMemory
from src.data.tensor_examples import TensorExamples
from src.teacher.title_lm import generation
from src.teacher.title_lm.generation import answer_all
from src.teacher.title_lm.model import TitleTeacher
from tests.fixtures import NUM_ITEMS, cycle_examples
from tests.teacher.builders import CPU
from tests.teacher.title_builders import N, save_random_causal, title_teacher_of

EXAMPLES = TensorExamples.of(cycle_examples(10, 0), CPU)
LISTS = torch.arange(10).unsqueeze(1).add(torch.arange(N)) % NUM_ITEMS


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TitleTeacher:
    return title_teacher_of(save_random_causal(tmp_path_factory.mktemp("causal")))


def hungry(teacher: TitleTeacher, most: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The model runs out of memory above so many prompts at once; returns how many it was asked."""
    asked, real = list[int](), teacher.causal_lm.generate

    def generate(*, inputs_embeds: Tensor, **named: Tensor) -> Tensor:
        asked.append(len(inputs_embeds))
        written: Tensor = real(inputs_embeds=inputs_embeds, **named)
        if len(inputs_embeds) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return written

    monkeypatch.setattr(teacher.causal_lm, "generate", generate)
    return asked


def test_out_of_memory_halves_the_batch_and_changes_no_answer(
    teacher: TitleTeacher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = answer_all(teacher, EXAMPLES, LISTS, 8)
    asked = hungry(teacher, 3, monkeypatch)
    assert answer_all(teacher, EXAMPLES, LISTS, 8) == whole
    assert len(set(whole)) > 1
    assert asked == [8, 4, 2, 2, 2, 2, 2]
    assert "going on with 4 rows at once; teacher.export.batch_size was 8" in caplog.text


def test_an_answer_that_does_not_fit_leaves_the_mode_as_it_was(
    teacher: TitleTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    hungry(teacher, 0, monkeypatch)
    teacher.train()
    with pytest.raises(OutOfMemory, match=r"a single row at once .*teacher.quantise=4bit"):
        answer_all(teacher, EXAMPLES, LISTS, 2)
    assert teacher.training
    teacher.eval()
    with pytest.raises(torch.OutOfMemoryError):
        generation.write_answers(teacher, EXAMPLES.history, EXAMPLES.length, LISTS)
    assert not teacher.training
