"""Presets of large models: what each file says about memory and disk is what the estimate gives for its shape."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from src.config.composition import CONF
from src.config.reading import read_settings
from src.core.memory import gigabytes
from src.pipeline.settings import ExperimentSettings
from src.teacher.operations.model_shape import model_shape
from src.teacher.operations.resource_estimate import WeightFormat, estimate_resources, workload_of
from src.teacher.settings import TeacherSettings

ITEMS = 10_000
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "meta-llama/Llama-2-7b-hf": (
        "llama",
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
        },
    ),
    "Qwen/Qwen3-8B": (
        "qwen3",
        {
            "vocab_size": 151936,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": False,
        },
    ),
}
PRESETS = ("llama2_7b", "llama2_7b_4bit", "qwen3_8b", "qwen3_8b_4bit")


def composed(preset: str) -> TeacherSettings:
    """As the command line gives it."""
    return read_settings("config", [f"teacher={preset}"], ExperimentSettings)[0].teacher


def comment(preset: str) -> str:
    """The file's own words in one line."""
    lines = (CONF / "teacher" / f"{preset}.yaml").read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


@pytest.mark.parametrize("preset", PRESETS)
def test_the_need_in_the_file_is_the_estimate(preset: str) -> None:
    settings = composed(preset)
    family, shape = PUBLISHED[settings.llm]
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(family, **shape))
    found, form = model_shape(model, settings.lora), "bfloat16" if settings.quantise == "none" else settings.quantise
    load = workload_of(settings, found, ITEMS, settings.prompt.max_tokens)
    needs = estimate_resources(found, settings, _form(form), load)
    words = (
        f"{needs.memory_words()} at {load.rows} prompts of {load.tokens} tokens a forward pass; "
        f"{gigabytes(needs.disk)} of disk"
    )
    assert words in comment(preset), words
    if needs.kv_cache:
        assert needs.kv_cache_words(settings.export.batch_size) in comment(preset), needs.kv_cache_words(0)


def _form(name: str) -> WeightFormat:
    assert name in ("bfloat16", "4bit")
    return "bfloat16" if name == "bfloat16" else "4bit"


@pytest.mark.parametrize("preset", PRESETS)
def test_batches_are_grouped_and_four_bits_are_said_to_need_their_extra(preset: str) -> None:
    settings = composed(preset)
    assert settings.train.group_by_length
    assert settings.train.loop.adapt_micro_batch
    assert settings.gradient_checkpointing == (settings.quantise == "4bit") == preset.endswith("_4bit")
    assert ("poetry install -E quantised" in comment(preset)) == preset.endswith("_4bit")
    assert ("HF_TOKEN" in comment(preset)) == settings.llm.startswith("meta-llama/")


def test_llama_2_has_the_published_experts_and_rates() -> None:
    settings = composed("llama2_7b")
    lora, train = settings.lora, settings.train
    assert (lora.rank, lora.experts, lora.alpha, lora.dropout) == (8, 4, 32.0, 0.1)
    assert set(lora.target_modules) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    # golden prompts/lr_schedule.json: peaks of projector, router and adapters, from and to a hundredth of them
    assert (train.projector_learning_rate, train.learning_rate) == (8e-4, 8e-4)
    assert train.learning_rate * settings.gate.learning_rate_factor == pytest.approx(2.4e-4)
    assert (settings.title.start_rate, settings.title.minimum_rate) == (0.01, 0.01)
    assert (train.warmup_share, train.weight_decay) == (0.05, 1e-5)
    assert (train.loop.epochs, train.loop.patience, settings.train_rows, train.loop.batch_size) == (5, 5, 0, 128)
    assert lora.compute == "float32"


def test_four_bits_change_the_form_and_what_goes_with_a_small_gpu() -> None:
    for preset, also in (("llama2_7b", {"lora", "export"}), ("qwen3_8b", set())):
        whole, small = composed(preset), composed(f"{preset}_4bit")
        different = {name for name in vars(whole) if getattr(whole, name) != getattr(small, name)}
        assert different == {"dtype", "quantise", "gradient_checkpointing"} | also
        assert replace(small.lora, compute=whole.lora.compute) == whole.lora
        assert replace(small.export, batch_size=whole.export.batch_size) == whole.export
