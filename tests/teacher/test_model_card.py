"""The card of a saved teacher: front matter that the hub reads, true words, and code that runs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModel, AutoModelForCausalLM

from src.teacher.factory import ADAPTER_FOLDER, CARD, save_teacher
from src.teacher.operations.model_card import model_card
from src.teacher.settings import TeacherSettings
from tests.fixtures import cycle_data
from tests.teacher.builders import SETTINGS, teacher_of
from tests.teacher.title_builders import TITLE_SETTINGS, save_random_causal, title_teacher_of

SUMMARY = {"rows_trained": 7, "epochs": 2, "gate_entropy": 0.81234, "validation": {"ndcg_5": 0.25, "recall_5": 0.5}}
FINGERPRINTS = {"dataset": "0123456789abcdef", "model": "fedcba9876543210"}


def card(settings: TeacherSettings, llm: str) -> tuple[dict[str, Any], str]:
    """Front matter and text."""
    _, front, text = model_card(settings, llm, 1234, FINGERPRINTS, SUMMARY, ("projector", "gate")).split("---\n", 2)
    return yaml.safe_load(front), text


def test_a_hub_model_is_named_as_the_base() -> None:
    front, text = card(replace(SETTINGS, llm="org/model", quantise="4bit"), "org/model")
    assert front == {
        "base_model": "org/model",
        "library_name": "peft",
        "tags": ["lora", "ilora", "sequential-recommendation", "knowledge-distillation"],
    }
    assert "1,234 items: `org/model`, frozen, in 4bit, with 4 LoRA experts\nof rank 2 each" in text
    assert 'PeftModel.from_pretrained(AutoModel.from_pretrained("org/model"), "adapter")' in text


def test_metrics_and_fingerprints_stand_in_tables() -> None:
    _, text = card(replace(SETTINGS, llm="org/model"), "org/model")
    for line in ("| ndcg_5 | 0.2500 |", "| gate_entropy | 0.8123 |", "| rows_trained | 7 |"):
        assert line in text.splitlines()
    assert all(f"| {name} | {value} |" in text for name, value in FINGERPRINTS.items())


@pytest.mark.parametrize("llm", ["tiny", "/home/somebody/model"])
def test_no_path_of_this_machine_stands_in_a_card(llm: str) -> None:
    front, text = card(replace(SETTINGS, llm=llm), "/home/somebody/model")
    assert "base_model" not in front
    assert "somebody" not in text
    assert ('.from_pretrained("llm")' in text) == (llm == "tiny")


def test_a_saved_teacher_has_its_card_and_anybodys_peft_reads_the_adapter(llama: Path, tmp_path: Path) -> None:
    teacher = teacher_of(llama)
    save_teacher(tmp_path / "teacher", teacher, cycle_data(), SUMMARY)
    text = (tmp_path / "teacher" / CARD).read_text(encoding="utf-8")
    assert teacher.fingerprints()["model"] in text
    assert "load_teacher(folder, settings.teacher, data, device)" in text
    model = _as_the_card_says(text, llama, tmp_path / "teacher")
    assert isinstance(model, PeftModel)
    saved = {name: value for name, value in teacher.llm.state_dict().items() if "lora_" in name}
    read = model.state_dict()
    assert saved
    assert all(torch.equal(read[name], value) for name, value in saved.items())


def test_the_adapter_of_a_teacher_that_writes_is_read_the_same_way(tmp_path: Path) -> None:
    folder = save_random_causal(tmp_path / "model")
    teacher = title_teacher_of(folder, TITLE_SETTINGS)
    save_teacher(tmp_path / "teacher", teacher, cycle_data(), {})
    text = (tmp_path / "teacher" / CARD).read_text(encoding="utf-8")
    assert "load_teacher(" in text
    model = _as_the_card_says(text, folder, tmp_path / "teacher")
    assert model.get_base_model().get_output_embeddings() is not None
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad(), teacher.scope(torch.full((1, 4), 1 / 4)):
        wanted = teacher.llm(input_ids=ids).logits
        torch.testing.assert_close(model.eval()(input_ids=ids).logits, wanted)


def _as_the_card_says(text: str, llm: Path, folder: Path) -> Any:
    """What the card's line for PEFT loads, with the two folders put in."""
    (kind,) = re.findall(r"from transformers import (\w+)", text)
    loader = {"AutoModel": AutoModel, "AutoModelForCausalLM": AutoModelForCausalLM}[kind]
    assert f'PeftModel.from_pretrained({kind}.from_pretrained("FOLDER-OF-THE-LANGUAGE-MODEL"), "adapter")' in text
    return PeftModel.from_pretrained(loader.from_pretrained(llm), str(folder / ADAPTER_FOLDER))
