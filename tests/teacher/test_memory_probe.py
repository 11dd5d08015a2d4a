"""Whether a language model has read a catalogue: one that knows it by heart is found out, one that does not is not."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from src.data.id_map import IdMap
from src.evaluation.paired import user_interval
from src.teacher.backbone.llm import load_llm
from src.teacher.backbone.tiny_llm import train_tokenizer
from src.teacher.factory import build_teacher
from src.teacher.ilora_model import GatedTeacher
from src.teacher.operations.memory_probe import MemoryProbe, _halves, _shuffled, probe_memory
from src.teacher.prompts import encode_words
from src.teacher.settings import TinySettings
from tests.fixtures import NUM_ITEMS, id_map_of
from tests.teacher.builders import CPU, SETTINGS, encoder_of, teacher_of
from tests.teacher.test_teacher_check import compared, ranking
from tests.teacher.title_builders import TITLE_SETTINGS, save_random_causal

INTERVAL = partial(user_interval, seed=0)
WORDS = ["red", "moon", "river", "stone", "glass", "empire", "silent", "hunter", "golden", "city", "last", "winter"]
TITLES = tuple(
    f"{WORDS[k]} {WORDS[(5 * k + 3) % 12]} {WORDS[(7 * k + 1) % 12]} ({1950 + 7 * k})" for k in range(NUM_ITEMS)
)
CATALOGUE = IdMap(tuple(str(10 + 3 * k) for k in range(NUM_ITEMS)), TITLES)


def learn(folder: Path, texts: tuple[str, ...]) -> Path:
    """A causal model that was trained on these texts until it can say them."""
    reader = train_tokenizer(CATALOGUE, TinySettings(vocabulary=300))
    save_random_causal(folder, reader=reader, deviation=0.05, hidden_size=32, num_hidden_layers=1)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = [torch.tensor([[reader.bos_token_id, *ids]]) for ids in encode_words(reader, texts)]
    longest = max(row.shape[1] for row in rows)
    batch = torch.cat([torch.nn.functional.pad(row, (0, longest - row.shape[1]), value=-100) for row in rows])
    for _ in range(90):
        loss = model(input_ids=batch.clamp(min=0), labels=batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reader_of_titles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It has read the catalogue's titles and nothing else."""
    torch.set_num_threads(1)
    return learn(tmp_path_factory.mktemp("read"), TITLES)


def teacher_around(folder: Path, writes: bool) -> GatedTeacher:
    """A teacher over `CATALOGUE` whose experts are awake: the probe must not hear them."""
    settings = replace(TITLE_SETTINGS if writes else SETTINGS, llm=str(folder))
    teacher: GatedTeacher = build_teacher(settings, CATALOGUE, encoder_of(), load_llm(str(folder), "auto", CPU), CPU)
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=3.0)
    return teacher


def test_a_model_that_knows_the_titles_by_heart_is_found_out_by_both_kinds_of_teacher(reader_of_titles: Path) -> None:
    found = [probe_memory(teacher_around(reader_of_titles, writes), CATALOGUE, 99, 0, INTERVAL) for writes in (0, 1)]  # type: ignore[arg-type]
    assert found[0] == found[1]
    probe = found[0]
    assert probe.titles == NUM_ITEMS
    assert probe.completed > 0.8
    assert probe.completed_shuffled < 0.2
    assert probe.interval[0] > 0
    # it has never seen a line with an id
    assert probe.lines == probe.lines_mismatched == 0
    assert probe.has_read
    assert "it has read this catalogue, and a gain on data that the LLM has read is weak evidence." in probe.sentence()


def test_a_model_that_has_not_read_it_completes_nothing(tmp_path: Path) -> None:
    reader = train_tokenizer(CATALOGUE, TinySettings(vocabulary=300))
    teacher = teacher_around(save_random_causal(tmp_path, reader=reader), writes=True)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    teacher.train()
    probe = probe_memory(teacher, CATALOGUE, 5, 0, INTERVAL)
    assert (probe.titles, probe.completed, probe.interval) == (5, 0.0, (0.0, 0.0))
    assert not probe.has_read
    assert "no sign that it has read" in probe.sentence()
    assert teacher.training
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_lines_of_the_item_file_that_were_read_are_told_from_those_of_other_items(tmp_path: Path) -> None:
    lines = tuple(f"{raw}::{title}" for raw, title in zip(CATALOGUE.raw_ids, TITLES, strict=True))
    # in many orders, so that the lines that are shown above one do not matter
    drawn = np.random.default_rng(0)
    texts = tuple("\n".join(lines[k] for k in drawn.permutation(NUM_ITEMS)[:4]) for _ in range(16))
    teacher = teacher_around(learn(tmp_path, texts), writes=False)
    probe = probe_memory(teacher, CATALOGUE, 99, 0, INTERVAL)
    assert probe.lines >= 0.25
    assert probe.lines_mismatched == 0
    assert probe.lines_interval[0] > 0
    assert probe.has_read


def test_models_that_cannot_be_asked_say_why(llama: Path, bert: Path) -> None:
    id_map = id_map_of(NUM_ITEMS)
    reasons = {
        "an encoder": teacher_of(bert),
        "no weights for its language-model head": teacher_of(llama),
    }
    tiny = teacher_of(llama)
    tiny.settings = replace(tiny.settings, llm="tiny")
    reasons["made from this dataset's own text"] = tiny
    for reason, teacher in reasons.items():
        probe = probe_memory(teacher, id_map, 99, 0, INTERVAL)
        assert reason in str(probe.not_applicable)
        assert probe.sentence().startswith("Whether the LLM has read this catalogue cannot be told: ")
        assert not probe.has_read


def test_titles_of_one_word_are_not_asked_for(reader_of_titles: Path) -> None:
    teacher = teacher_around(reader_of_titles, writes=False)
    single = replace(CATALOGUE, titles=tuple(title.split()[0] for title in TITLES), texts=())
    assert probe_memory(teacher, single, 99, 0, INTERVAL).not_applicable == "too few titles have two words"


def test_words_are_shuffled_into_another_order() -> None:
    drawn = np.random.default_rng(0)
    for words in (["a", "b"], ["a", "a", "b"], ["one", "two", "three", "four"]):
        for _ in range(20):
            order = _shuffled(words, drawn)
            assert sorted(order) == sorted(words)
            assert order != words
    assert _halves(["a", "b", "c"]) == ("a", "a b c")
    assert _halves(["a", "b", "c", "d"]) == ("a b", "a b c d")


def test_the_check_tells_it_in_figures_and_words() -> None:
    check = compared(ranking([1], 0), ranking([2], 0))
    assert check.as_dict()["memory"] is None
    probe = MemoryProbe(40, 0.5, 0.1, (0.2, 0.6), 0.25, 0.0, (0.1, 0.4))
    told = replace(check, memory=probe)
    assert told.sentence() == f"{check.sentence()} {probe.sentence()}"
    memory = told.as_dict()["memory"]
    assert (memory["completed"], memory["interval"], memory["has_read"]) == (0.5, [0.2, 0.6], True)
    assert memory["sentence"].startswith(
        "Of 40 titles the LLM completes 50% from their first half, and 10% of the same"
    )
