"""A saved teacher: a standard PEFT folder and what belongs to it; the same outputs again, and only for its own data."""

from __future__ import annotations

import json
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from src.core.errors import ArtefactError, ModelError
from src.core.paths import MANIFEST
from src.data.examples import SequenceData
from src.teacher.backbone.llm import load_llm
from src.teacher.factory import build_teacher, load_teacher, save_teacher
from src.teacher.ilora_model import ILoRATeacher
from src.teacher.settings import GateSettings
from tests.fixtures import NUM_ITEMS, cycle_data
from tests.teacher.builders import CPU, SETTINGS, encoder_of, teacher_of
from tests.teacher.test_ilora_model import HISTORY, LENGTH


def data() -> SequenceData:
    """Titles and items of the tests' teacher."""
    return cycle_data()


def saved(teacher: ILoRATeacher, folder: Path) -> Path:
    """Written with a summary."""
    save_teacher(folder, teacher, data(), {"rows_trained": 7})
    return folder


@pytest.mark.parametrize("kind", ["convolutional", "linear", "mlp"])
def test_a_loaded_teacher_gives_the_same_outputs(llm: Path, tmp_path: Path, kind: str) -> None:
    teacher = teacher_of(llm, gate=GateSettings(kind=kind))  # type: ignore[arg-type]
    teacher.train()(HISTORY, LENGTH)  # moves the router's running statistics, which must be saved as well
    teacher.eval()
    folder = saved(teacher, tmp_path / "teacher")
    loaded = load_teacher(folder, replace(SETTINGS, llm=str(llm)), data(), CPU)
    assert not loaded.training
    for before, after in zip(teacher(HISTORY, LENGTH), loaded(HISTORY, LENGTH), strict=True):
        assert torch.equal(before, after)
    assert torch.equal(teacher.embed_items(4), loaded.embed_items(4))
    assert loaded.fingerprints() == teacher.fingerprints()
    assert json.loads((folder / MANIFEST).read_text())["summary"] == {"rows_trained": 7}


def test_the_folder_holds_what_it_should(llama: Path, tmp_path: Path) -> None:
    folder = saved(teacher_of(llama), tmp_path / "teacher")
    found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert found == {
        "README.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "encoder/id_map.json",
        "encoder/manifest.json",
        "encoder/model.safetensors",
        "gate.safetensors",
        "head.safetensors",
        "id_map.json",
        "manifest.json",
        "projector.safetensors",
    }


def test_a_plain_peft_load_is_the_uniform_gate(llm: Path, tmp_path: Path) -> None:
    teacher = teacher_of(llm)
    folder = saved(teacher, tmp_path / "teacher")
    plain = PeftModel.from_pretrained(load_llm(str(llm), "auto", CPU).model, str(folder / "adapter")).eval()
    prompts = teacher.prompts(HISTORY, LENGTH)
    inputs = {"inputs_embeds": teacher.embed_tokens(prompts), "attention_mask": prompts.attention_mask}
    with teacher.scope(torch.full((3, 4), 1 / 4)):
        wanted = teacher.llm(**inputs).last_hidden_state
    torch.testing.assert_close(plain(**inputs).last_hidden_state, wanted)


def test_a_loaded_teacher_can_be_trained_on(llama: Path, tmp_path: Path) -> None:
    teacher = teacher_of(llama)
    loaded = load_teacher(saved(teacher, tmp_path / "teacher"), replace(SETTINGS, llm=str(llama)), data(), CPU)
    names = {name for name, value in loaded.named_parameters() if value.requires_grad}
    assert names == {name for name, value in teacher.named_parameters() if value.requires_grad}


def test_a_tiny_model_travels_with_its_teacher(llama: Path, tmp_path: Path) -> None:
    built = shutil.copytree(llama, tmp_path / "cache")
    language = load_llm(str(built), "auto", CPU)
    teacher = build_teacher(replace(SETTINGS, llm="tiny"), data().id_map, encoder_of(), language, CPU).eval()
    folder = saved(teacher, tmp_path / "teacher")
    shutil.rmtree(built)
    moved = shutil.move(folder, tmp_path / "elsewhere")
    loaded = load_teacher(Path(moved), replace(SETTINGS, llm="tiny"), data(), CPU)
    assert torch.equal(loaded(HISTORY, LENGTH).logits, teacher(HISTORY, LENGTH).logits)


def test_another_catalogue_is_refused(llama: Path, tmp_path: Path) -> None:
    folder = saved(teacher_of(llama), tmp_path / "teacher")
    with pytest.raises(ArtefactError, match=f"id map .*knows {NUM_ITEMS} other items; this dataset has 13"):
        load_teacher(folder, replace(SETTINGS, llm=str(llama)), cycle_data(num_items=13), CPU)


def test_another_language_model_is_refused(llama: Path, bert: Path, tmp_path: Path) -> None:
    folder = saved(teacher_of(llama), tmp_path / "teacher")
    with pytest.raises(ArtefactError, match="another language model"):
        load_teacher(folder, replace(SETTINGS, llm=str(bert)), data(), CPU)


def test_a_language_model_that_is_gone_is_named(llama: Path, tmp_path: Path) -> None:
    folder = saved(teacher_of(llama), tmp_path / "teacher")
    with pytest.raises(ModelError, match="is gone"):
        load_teacher(folder, replace(SETTINGS, llm="/not/here"), data(), CPU)


def test_a_teacher_of_other_prompts_is_refused(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(teacher_of(llama), tmp_path / "teacher")
    monkeypatch.setattr("src.teacher.prompts.SUFFIX", " And then?")
    with pytest.raises(ArtefactError, match="trained with other prompts"):
        load_teacher(folder, replace(SETTINGS, llm=str(llama)), data(), CPU)


@pytest.mark.parametrize(
    "lost", ["manifest.json", "gate.safetensors", "adapter/adapter_model.safetensors", "encoder/model.safetensors"]
)
def test_an_incomplete_folder_is_refused(llama: Path, tmp_path: Path, lost: str) -> None:
    folder = saved(teacher_of(llama), tmp_path / "teacher")
    (folder / lost).unlink()
    with pytest.raises(ArtefactError):
        load_teacher(folder, replace(SETTINGS, llm=str(llama)), data(), CPU)


@pytest.mark.parametrize("name", ["adapter/adapter_model", "gate", "head", "projector", "encoder/model"])
def test_a_flipped_bit_in_any_weights_is_told(llama: Path, tmp_path: Path, name: str) -> None:
    folder = saved(teacher_of(llama), tmp_path / "teacher")
    file = folder / f"{name}.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ArtefactError, match=rf"{name}.safetensors.*is damaged.* → run "):
        load_teacher(folder, replace(SETTINGS, llm=str(llama)), data(), CPU)


def test_weights_of_another_shape_are_refused(llama: Path, tmp_path: Path) -> None:
    folder = saved(teacher_of(llama), tmp_path / "teacher")
    shutil.copy(folder / "head.safetensors", folder / "projector.safetensors")
    with pytest.raises(ArtefactError, match="do not fit the saved settings"):
        load_teacher(folder, replace(SETTINGS, llm=str(llama)), data(), CPU)


@pytest.mark.parametrize("built_here", [True, False])
def test_the_adapter_can_be_handed_on(llama: Path, tmp_path: Path, built_here: bool) -> None:
    teacher = teacher_of(llama)
    if built_here:
        teacher.settings = replace(teacher.settings, llm="tiny")
    adapter = saved(teacher, tmp_path / "teacher") / "adapter"
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in adapter.iterdir()}
    assert modes == {"adapter_config.json": 0o644, "adapter_model.safetensors": 0o644}
    named = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == ("../llm" if built_here else llama.name)
    for file in adapter.iterdir():
        assert str(llama).encode() not in file.read_bytes()


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"kind": "teacher", "schema_version": 1}', "{"])
def test_a_manifest_of_another_shape_is_refused(llama: Path, tmp_path: Path, content: str) -> None:
    folder = saved(teacher_of(llama), tmp_path / "teacher")
    (folder / MANIFEST).write_text(content)
    with pytest.raises(ArtefactError):
        load_teacher(folder, replace(SETTINGS, llm=str(llama)), data(), CPU)
