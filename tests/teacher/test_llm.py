"""Language models: loading through one door, and every reason not to, before any training."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from src.core.errors import ModelError, OutOfMemory
from src.teacher.backbone.llm import load_llm
from src.teacher.backbone.model_check import check_llm
from src.teacher.backbone.model_fingerprint import fingerprint_llm
from src.teacher.settings import LoraSettings, PromptSettings, TeacherSettings
from tests.golden.sentencepiece_file import load_tokenizer
from tests.teacher.builders import CPU, SETTINGS, WIDTH

SENTENCEPIECE = Path(__file__).parents[1] / "golden/vectors/prompts/tiny_tokenizer/tokenizer.model"
Damage = Callable[[Path], object]


def settings_for(folder: Path | str) -> TeacherSettings:
    """The tests' settings with another model."""
    return replace(SETTINGS, llm=str(folder))


@contextmanager
def listening(logger: str, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Also records of a logger that passes nothing on, whatever level another test has left it at."""
    logging.getLogger(logger).addHandler(caplog.handler)
    try:
        with caplog.at_level("WARNING", logger=logger):
            yield
    finally:
        logging.getLogger(logger).removeHandler(caplog.handler)


def test_a_decoder_and_an_encoder_are_told_apart(llama: Path, bert: Path) -> None:
    decoder, encoder = load_llm(str(llama), "auto", CPU), load_llm(str(bert), "auto", CPU)
    assert (decoder.is_decoder, encoder.is_decoder) == (True, False)
    assert decoder.hidden_size == encoder.hidden_size == WIDTH
    assert not decoder.model.training
    assert decoder.model.config._attn_implementation == "sdpa"


def test_half_precision_weights_are_computed_in_float32_on_a_cpu(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "half")
    half = {name: value.half() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    loaded = load_llm(str(folder), "auto", CPU).model.state_dict()
    for name, value in half.items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], value.float())
    assert load_llm(str(folder), "bfloat16", CPU).model.dtype == torch.bfloat16


def test_a_causal_checkpoint_is_read_without_its_head(
    llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = LlamaConfig.from_pretrained(llama)
    causal = LlamaForCausalLM(config)
    folder = shutil.copytree(llama, tmp_path / "causal")
    causal.save_pretrained(folder)
    with listening("transformers.modeling_utils", caplog):
        model = load_llm(str(folder), "auto", CPU).model
    assert "lm_head" not in caplog.text
    assert torch.equal(model.get_input_embeddings().weight, causal.get_input_embeddings().weight)


def test_a_sound_folder_passes_the_check(llm: Path) -> None:
    check_llm(settings_for(llm))
    check_llm(settings_for("tiny"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "weights are missing"),
        (lambda f: (f / "model.safetensors").write_bytes(b"no weights"), "model.safetensors cannot be read"),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-8]),
            "cannot be read",
        ),
        (lambda f: [file.unlink() for file in f.glob("token*")], "tokenizer"),
        (
            lambda f: (
                (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part-1.safetensors"}}')
                and (f / "model.safetensors").unlink()
            ),
            r"part-1\.safetensors",
        ),
    ],
)
def test_a_broken_folder_is_refused_before_anything_is_loaded(
    llama: Path, tmp_path: Path, damage: Damage, message: str
) -> None:
    folder = shutil.copytree(llama, tmp_path / "broken")
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        check_llm(settings_for(folder))
    assert any(str(folder) in str(problem) for problem in caught.value.problems)
    with pytest.raises(ModelError):
        load_llm(str(folder), "auto", CPU)


def test_a_bert_without_its_tokenizer_is_refused_though_one_of_special_tokens_can_be_made(
    bert: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(bert, tmp_path / "bert")
    for file in [*folder.glob("token*"), *folder.glob("vocab*")]:
        file.unlink()
    with pytest.raises(ModelError, match="its tokenizer knows no words"):
        check_llm(settings_for(folder))


def test_several_problems_are_reported_together(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "broken")
    (folder / "config.json").write_text("{")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError) as caught:
        check_llm(settings_for(folder))
    assert len(caught.value.problems) >= 2


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./no-such-model"])
def test_a_missing_folder_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        check_llm(settings_for(name))


def test_a_hub_id_that_cannot_be_reached_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_TOKEN"):
        check_llm(settings_for("nobody/no-such-model"))


def test_layers_that_are_not_there_and_prompts_that_are_too_long_are_refused(llama: Path) -> None:
    wrong = LoraSettings(rank=8, experts=4, target_modules=("c_attn",))
    with pytest.raises(ModelError, match=r"c_attn.*choose from"):
        check_llm(replace(settings_for(llama), lora=wrong))
    with pytest.raises(ModelError, match="reads 128 tokens at most"):
        check_llm(replace(settings_for(llama), prompt=PromptSettings(max_tokens=129)))


def test_weights_that_are_not_there_are_never_drawn_at_random(
    llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(llama, tmp_path / "holes")
    weights = load_file(folder / "model.safetensors")
    lost = "layers.1.mlp.up_proj.weight"
    del weights[lost]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with (
        listening("transformers.modeling_utils", caplog),
        pytest.raises(ModelError, match=f"1 weights are missing, {lost}"),
    ):
        load_llm(str(folder), "auto", CPU)
    assert "MISSING" in caplog.text


def test_the_fingerprint_follows_content_not_place(llama: Path, bert: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(llama, tmp_path / "copy")
    assert fingerprint_llm(str(copy)) == fingerprint_llm(str(llama)) != fingerprint_llm(str(bert))
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(bytes(content))
    assert fingerprint_llm(str(copy)) != fingerprint_llm(str(llama))


def test_every_file_of_a_tokenizer_counts_a_binary_one_too(llama: Path, tmp_path: Path) -> None:
    # Llama-2, Gemma and Mistral bring SentencePiece's tokenizer.model, which is no text
    copy = shutil.copytree(llama, tmp_path / "copy")
    found = {fingerprint_llm(str(copy))}
    shutil.copy(SENTENCEPIECE, copy)
    found.add(fingerprint_llm(str(copy)))
    (copy / "merges.txt").write_text("a b\n", encoding="utf-8")
    found.add(fingerprint_llm(str(copy)))
    assert len(found) == 3
    check_llm(settings_for(copy))
    assert load_llm(str(copy), "auto", CPU).fingerprint in found


def test_a_tokenizer_of_sentencepiece_alone_is_read(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "old")
    for file in folder.glob("token*"):
        file.unlink()
    for file in SENTENCEPIECE.parent.iterdir():
        shutil.copy(file, folder)
    check_llm(settings_for(folder))
    tokenizer = load_llm(str(folder), "auto", CPU).tokenizer
    by_hand = load_tokenizer(SENTENCEPIECE, "<s>", "</s>", "<unk>")
    text = "The visitor has watched Alien (1979)"
    assert tokenizer(text)["input_ids"] == by_hand(text)["input_ids"]


def test_a_large_file_is_known_by_samples_its_header_among_them(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.teacher.backbone.model_fingerprint._WHOLE_FILE", 10)
    monkeypatch.setattr("src.teacher.backbone.model_fingerprint._SAMPLE_BYTES", 16)
    copy = shutil.copytree(llama, tmp_path / "copy")
    before = fingerprint_llm(str(copy))
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[10] ^= 1
    (copy / "model.safetensors").write_bytes(bytes(content))
    assert fingerprint_llm(str(copy)) != before == fingerprint_llm(str(llama))


@pytest.mark.parametrize("where", ["transformers.AutoModel.from_pretrained", "transformers.PreTrainedModel.to"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14 GiB. See the documentation"), "CUDA out of"),
        (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be"), "CUDA error: out of"),
    ],
)
def test_a_model_that_does_not_fit_is_told_so(
    llama: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception, said: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(where, full)
    with pytest.raises(OutOfMemory, match=rf"does not fit .*{said} memory\) → set teacher.quantise=4bit") as caught:
        load_llm(str(llama), "auto", CPU)
    assert "HF_TOKEN" not in str(caught.value)
