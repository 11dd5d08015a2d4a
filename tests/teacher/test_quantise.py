"""Quantised models, as far as a machine without a GPU can tell: settings, and every refusal before anything loads."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoConfig

from src.core.errors import ConfigError, ModelError
from src.core.paths import MANIFEST
from src.teacher.backbone.llm import load_llm
from src.teacher.backbone.model_check import check_llm
from src.teacher.backbone.quantisation import (
    bits_config,
    check_quantise,
    check_stored_form,
    loading_arguments,
    stored_form,
)
from src.teacher.factory import load_teacher, save_teacher
from src.teacher.settings import Quantise, TeacherSettings
from tests.fixtures import cycle_data
from tests.teacher.builders import CPU, SETTINGS, teacher_of

CUDA = torch.device("cuda:0")
FOUR_BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}


def quantised_folder(llama: Path, folder: Path, content: dict[str, Any]) -> Path:
    """A copy of a model whose config says that it is quantised."""
    shutil.copytree(llama, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": content}))
    return folder


def test_four_bits_are_qlora_and_eight_are_int8() -> None:
    four, eight = bits_config("4bit"), bits_config("8bit")
    assert (four.load_in_4bit, four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert four.bnb_4bit_compute_dtype == torch.bfloat16
    assert (eight.load_in_8bit, eight.load_in_4bit) == (True, False)


def test_a_quantised_model_is_put_together_on_its_device(llama: Path) -> None:
    config = AutoConfig.from_pretrained(llama)
    assert loading_arguments(config, "none", CUDA) == {}
    arguments = loading_arguments(config, "4bit", CUDA)
    assert arguments["device_map"] == {"": CUDA}
    assert arguments["quantization_config"].load_in_4bit


def test_without_cuda_and_without_bitsandbytes_both_are_said(monkeypatch: pytest.MonkeyPatch, llama: Path) -> None:
    monkeypatch.setattr("src.teacher.backbone.quantisation.find_spec", lambda name: None)
    check_quantise("none", CPU)
    with pytest.raises(ConfigError) as caught:
        check_quantise("4bit", CPU)
    assert [problem.field for problem in caught.value.problems] == ["teacher.quantise"] * 2
    assert "needs a CUDA device, and this run computes on cpu → run it on a GPU" in str(caught.value)
    assert "poetry install -E quantised" in str(caught.value)
    with pytest.raises(ConfigError, match="not installed"):
        check_quantise("8bit", CUDA)
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        load_llm(str(llama), "auto", CPU, "8bit")


@pytest.mark.parametrize(
    ("content", "wanted", "stored", "step"),
    [
        (FOUR_BITS, "none", "4bit", "set teacher.quantise=4bit"),
        (FOUR_BITS, "8bit", "4bit", "set teacher.quantise=4bit"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "4bit", "8bit", "set teacher.quantise=8bit"),
        ({"quant_method": "gptq", "bits": 4}, "4bit", "gptq", "the model that is not quantised"),
    ],
)
def test_a_model_that_is_quantised_otherwise_is_refused_before_it_is_loaded(
    llama: Path, tmp_path: Path, content: dict[str, Any], wanted: Quantise, stored: str, step: str
) -> None:
    folder = quantised_folder(llama, tmp_path / "model", content)
    with pytest.raises(
        ModelError, match=rf"already quantised \({stored}\), and teacher.quantise is {wanted} → .*{step}"
    ):
        check_llm(replace(SETTINGS, llm=str(folder), quantise=wanted))


def test_a_model_that_is_quantised_as_wanted_brings_its_own_configuration(llama: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(quantised_folder(llama, tmp_path / "model", FOUR_BITS))
    assert stored_form(config) == "4bit"
    check_stored_form("model", config, "4bit")
    assert loading_arguments(config, "4bit", CUDA) == {"device_map": {"": CUDA}}


def test_float32_and_quantisation_contradict_each_other_and_so_do_compiling_and_recomputing() -> None:
    with pytest.raises(ValidationError, match="teacher.dtype = 'float32' contradicts teacher.quantise = '8bit'"):
        TeacherSettings(dtype="float32", quantise="8bit")
    with pytest.raises(ValidationError, match="exclude each other"):
        TeacherSettings(compile=True, gradient_checkpointing=True)


def test_a_teacher_is_read_with_the_bits_that_it_was_trained_with(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_teacher(tmp_path / "teacher", teacher_of(llama), cycle_data(), {})
    manifest = json.loads((tmp_path / "teacher" / MANIFEST).read_text())
    assert manifest["settings"]["quantise"] == "none"
    manifest["settings"]["quantise"] = "4bit"
    (tmp_path / "teacher" / MANIFEST).write_text(json.dumps(manifest))
    asked = list[str]()

    def watched(name: str, dtype: str, device: torch.device, quantise: Quantise = "none") -> Any:
        asked.append(quantise)
        return load_llm(name, dtype, device)

    monkeypatch.setattr("src.teacher.factory.load_llm", watched)
    load_teacher(tmp_path / "teacher", replace(SETTINGS, llm=str(llama)), cycle_data(), CPU)
    assert asked == ["4bit"]
