"""The tiny language model: an ordinary folder, made from titles and training histories only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from src.core.errors import DataError
from src.core.training import LoopSettings
from src.data.examples import SealedExamples
from src.data.id_map import IdMap
from src.teacher.backbone.llm import load_llm
from src.teacher.backbone.model_fingerprint import fingerprint_llm
from src.teacher.backbone.tiny_llm import build_tiny_llm, split_rows, training_texts
from src.teacher.prompts import PREFIX, Prompts
from src.teacher.settings import PromptSettings, TinySettings
from tests.fixtures import NUM_ITEMS, cycle_data, cycle_examples
from tests.teacher.builders import CPU, SETTINGS, teacher_of
from tests.teacher.test_ilora_model import HISTORY, LENGTH

TINY = TinySettings(
    width=16,
    layers=1,
    heads=2,
    vocabulary=300,
    context=96,
    loop=LoopSettings(epochs=3, batch_size=8, patience=3, monitor="log_likelihood"),
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of the tests' catalogue."""
    folder = tmp_path_factory.mktemp("tiny") / "llm"
    result = build_tiny_llm(folder, TINY, cycle_data(), 0, CPU)
    scores = [epoch["log_likelihood"] for epoch in result.history]
    assert scores[-1] > scores[0]
    return folder


def test_it_is_an_ordinary_folder_read_through_the_same_door(built: Path) -> None:
    language = load_llm(str(built), "auto", CPU)
    assert (language.is_decoder, language.hidden_size) == (True, 16)
    assert AutoModelForCausalLM.from_pretrained(built).config.model_type == "llama"
    assert AutoTokenizer.from_pretrained(built).decode(language.tokenizer("Title 3")["input_ids"]) == "<s>Title 3"
    assert not list(built.parent.glob(".*")), "no temporary folder is left"


def test_a_teacher_stands_on_it(built: Path) -> None:
    assert teacher_of(built, SETTINGS)(HISTORY, LENGTH).logits.shape == (3, NUM_ITEMS)


def test_it_never_sees_what_comes_after_the_training_split(built: Path, tmp_path: Path) -> None:
    data = cycle_data()
    other = replace(data, validation=cycle_examples(9, 5000), test=SealedExamples(cycle_examples(9, 7000)))
    build_tiny_llm(tmp_path / "llm", TINY, other, 0, CPU)
    assert fingerprint_llm(str(tmp_path / "llm")) == fingerprint_llm(str(built))


def test_another_seed_makes_another_model(built: Path, tmp_path: Path) -> None:
    build_tiny_llm(tmp_path / "llm", TINY, cycle_data(), 1, CPU)
    assert fingerprint_llm(str(tmp_path / "llm")) != fingerprint_llm(str(built))


def test_its_texts_are_prompts_with_their_answer(built: Path) -> None:
    data = cycle_data()
    prompts = Prompts(data.id_map, AutoTokenizer.from_pretrained(built), PromptSettings(max_tokens=80))
    texts = training_texts(prompts, data.train.take(np.array([4])), CPU)
    text = prompts.tokenizer.decode(texts.token_ids[0])
    titles = [f"Title {item}" for item in [*data.train.history[4].tolist(), int(data.train.target[4])]]
    assert text.startswith(f"<s>{PREFIX}")
    places = [text.index(f" {title}[") for title in titles]
    assert places == sorted(places)


def test_judges_are_other_people_than_those_it_learns_from() -> None:
    examples = cycle_examples(60, 0)
    people = replace(examples, user=np.arange(60) // 3)
    learn, judge = split_rows(people, 1000, 0)
    assert len(learn) + len(judge) == 60
    assert len(judge) == 6
    assert not set(learn.user) & set(judge.user)
    nameless = replace(examples, user=np.full(60, -1))
    learn, judge = split_rows(nameless, 10, 0)
    assert len(learn) == 10
    assert len(judge) >= 1
    assert not set(learn.example_id) & set(judge.example_id)


def test_missing_titles_are_refused(tmp_path: Path) -> None:
    data = cycle_data()
    untitled = replace(data, id_map=IdMap(data.id_map.raw_ids, ("", *data.id_map.titles[1:])))
    with pytest.raises(DataError, match="raw_0"):
        build_tiny_llm(tmp_path / "llm", TINY, untitled, 0, CPU)
    assert not (tmp_path / "llm").exists()


def test_the_global_stream_decides_nothing(built: Path, tmp_path: Path) -> None:
    torch.manual_seed(987)
    build_tiny_llm(tmp_path / "llm", TINY, cycle_data(), 0, CPU)
    assert fingerprint_llm(str(tmp_path / "llm")) == fingerprint_llm(str(built))
