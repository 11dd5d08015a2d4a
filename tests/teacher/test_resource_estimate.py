"""The estimate of a training's needs, by hand, against real models, and in what a run says before it starts."""

from __future__ import annotations

import logging
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, LlamaConfig

from src.core.training import LoopSettings
from src.teacher.backbone.llm import load_llm
from src.teacher.operations.model_shape import LinearMap, ModelShape, model_shape
from src.teacher.operations.resource_estimate import (
    BYTES_OF_A_WEIGHT,
    Workload,
    activation_bytes,
    estimate_resources,
    estimate_sentence,
    kv_cache_bytes,
    need_in_short,
    small_parameters,
    weight_bytes,
    weight_format,
    workload_of,
)
from src.teacher.settings import ExportSettings, LoraSettings, PromptSettings, TeacherTrainSettings
from tests.fixtures import NUM_ITEMS
from tests.teacher.builders import CPU, SETTINGS, teacher_of
from tests.teacher.test_families import DECODERS, save_random
from tests.teacher.test_training import TRAIN, trained
from tests.teacher.title_builders import TITLE_SETTINGS, title_teacher_of

# two layers: queries (adapted) and an up-projection
SHAPE = ModelShape(
    layers=2,
    width=8,
    vocabulary=50,
    maps=tuple(
        linear
        for layer in "01"
        for linear in (LinearMap(f"{layer}.attention", 8, 8, True), LinearMap(f"{layer}.mlp", 8, 32, False))
    ),
    other=400,
)
LORA = LoraSettings(rank=4, experts=2)
ALIKE = replace(LORA, compute="base")


def test_frozen_weights_by_hand() -> None:
    linear = 2 * (8 * 8 + 8 * 32)
    assert SHAPE.parameters == linear + 400
    assert weight_bytes(SHAPE, "float32", with_head=False) == 4 * (linear + 400)
    assert weight_bytes(SHAPE, "bfloat16", with_head=False) == 2 * (linear + 400)
    assert weight_bytes(SHAPE, "8bit", with_head=False) == linear + 2 * 400
    # half a byte, a byte for 64 weights, a float32 for 64 · 256: 0.516 bytes
    assert BYTES_OF_A_WEIGHT["4bit"] == Fraction(2113, 4096)
    assert weight_bytes(SHAPE, "4bit", with_head=False) == 331 + 2 * 400  # 640 · 2113 / 4096 = 330.2, rounded up
    assert weight_bytes(replace(SHAPE, head=70), "4bit", with_head=True) == 331 + 2 * 470


def test_activations_by_hand() -> None:
    # outputs 2 · (8 + 32) and the widest of each layer 2 · 32; norms 2 · 2 · 8; inputs 2 · 8; inner 2 · 4 · 2
    outputs, singles = 2 * 40 + 2 * 32, 32 + 16 + 16
    assert activation_bytes(SHAPE, 3, LORA, "float32", False) == 3 * 4 * (outputs + singles)
    assert activation_bytes(SHAPE, 3, LORA, "bfloat16", False) == 3 * (2 * outputs + 4 * singles)
    # adapters that compute as the base does: only the norms' inputs, 32 numbers, are float32
    assert activation_bytes(SHAPE, 3, ALIKE, "bfloat16", False) == 3 * (2 * outputs + 4 * 32 + 2 * (16 + 16))
    # checkpointed: the layers' inputs, and one and a half times one layer's share
    share = (4 * (outputs + singles)) // 2
    assert activation_bytes(SHAPE, 3, LORA, "float32", True) == 3 * (4 * 2 * 8 + share * 3 // 2)
    # dropout: a mask of a byte for each number of the adapters' inputs
    dropped = activation_bytes(SHAPE, 3, replace(LORA, dropout=0.1), "bfloat16", False)
    assert dropped == 3 * (2 * outputs + 4 * singles + 16)


def test_adapters_of_one_module_share_their_input_unless_it_has_to_be_copied() -> None:
    maps = (LinearMap("a", 8, 8, True), LinearMap("a", 8, 8, True), LinearMap("b", 8, 8, True))
    shape = ModelShape(layers=1, width=8, vocabulary=50, maps=maps, other=0)
    rest = 2 * 8 + 2 * 4 * 3  # norms and inner activations
    outputs = 3 * 8 + 8
    assert activation_bytes(shape, 1, LORA, "float32", False) == 4 * (outputs + rest + 2 * 8)
    assert activation_bytes(shape, 1, LORA, "4bit", False) == 2 * outputs + 4 * (rest + 3 * 8)
    assert activation_bytes(shape, 1, ALIKE, "4bit", False) == 2 * outputs + 4 * 2 * 8 + 2 * (2 * 4 * 3 + 2 * 8)


def test_needs_by_hand() -> None:
    settings = replace(SETTINGS, lora=LORA)
    needs = estimate_resources(SHAPE, settings, "float32", Workload(rows=2, tokens=5, logits=7, small=100))
    trained_parameters = 2 * 4 * (8 + 8) + 100
    assert needs.trained == trained_parameters
    # float32: itself, gradient, two moments, the best epoch
    assert needs.optimiser == 20 * trained_parameters
    assert needs.activations == activation_bytes(SHAPE, 10, LORA, "float32", False) + 12 * 2 * 7
    # the model's files, the teacher's, and a checkpoint of four numbers each
    assert needs.disk == weight_bytes(SHAPE, "float32", with_head=True) + 20 * trained_parameters
    assert needs.memory == needs.weights + needs.optimiser + needs.activations


def test_what_decoding_holds_by_hand(tmp_path: Path) -> None:
    # prompts of 5 tokens, three at once; 7 tokens a title along 4 beams, or one free answer
    export = ExportSettings(batch_size=3, beams=4, top_n=4)
    settings = replace(TITLE_SETTINGS, export=export, prompt=PromptSettings(title_tokens=7))
    shape = replace(SHAPE, cache=10)
    assert kv_cache_bytes(shape, settings, "bfloat16", 5) == 2 * 10 * 3 * (5 + 4 * 7)
    free = replace(settings, export=replace(export, ranking="grounded"))
    assert kv_cache_bytes(shape, free, "float32", 5) == 4 * 10 * 3 * (5 + 7)
    load = Workload(rows=1, tokens=5, logits=7, small=0)
    assert estimate_resources(shape, settings, "bfloat16", load).kv_cache == 2 * 10 * 3 * (5 + 4 * 7)
    assert estimate_resources(shape, SETTINGS, "bfloat16", load).kv_cache == 0
    said = estimate_sentence(estimate_resources(shape, settings, "bfloat16", load), load, 1, 5, settings)
    assert "at most while it answers 3 prompts at once" in said
    # two layers, one head of 8 keys for two of queries
    config = {"num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 16, "num_hidden_layers": 2}
    with torch.device("meta"):
        model = AutoModel.from_config(LlamaConfig(**config, intermediate_size=24, vocab_size=50))
    assert model_shape(model, SETTINGS.lora).cache == 2 * 2 * 1 * 8


def test_a_forward_pass_holds_a_micro_batch() -> None:
    def load(objective: str, **loop: int) -> Workload:
        train = TeacherTrainSettings(loop=LoopSettings(monitor="hit_ratio_1", **loop))
        settings = replace(SETTINGS if objective == "item_ce" else TITLE_SETTINGS, train=train)
        return workload_of(settings, SHAPE, 99, 5)

    assert load("item_ce", batch_size=8).rows == 8
    assert load("item_ce", batch_size=8, micro_batch_size=2).rows == 2
    assert load("item_ce", batch_size=8, micro_batch_size=20).rows == 8
    assert load("item_ce").logits == 99
    assert load("title_lm").logits == 50 * TITLE_SETTINGS.prompt.title_tokens


@pytest.mark.parametrize("name", [*DECODERS, "bert"])
def test_parameters_are_those_of_the_real_model(tmp_path: Path, name: str) -> None:
    folder = save_random(tmp_path, name)
    model = load_llm(str(folder), "auto", CPU).model
    shape = model_shape(model, SETTINGS.lora)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    teacher = teacher_of(folder)
    groups = {part: sum(p.numel() for p in group) for part, group in teacher.parameter_groups().items()}
    assert shape.adapter_parameters(SETTINGS.lora.rank) == groups.pop("experts")
    assert small_parameters(SETTINGS, shape.width, NUM_ITEMS) == sum(groups.values())


@pytest.mark.parametrize(("name", "tied"), [("llama", False), ("gemma", True)])
def test_a_head_counts_on_the_disk_and_where_titles_are_written_unless_it_is_the_embedding(
    tmp_path: Path, name: str, tied: bool
) -> None:
    folder = save_random(tmp_path, name)
    shape = model_shape(load_llm(str(folder), "auto", CPU).model, SETTINGS.lora)
    assert shape.head == (0 if tied else shape.vocabulary * shape.width)
    load = Workload(rows=2, tokens=5, logits=7, small=100)
    item, title = (estimate_resources(shape, settings, "float32", load) for settings in (SETTINGS, TITLE_SETTINGS))
    assert title.weights - item.weights == title.frozen * 4 - item.frozen * 4 == 4 * shape.head
    assert title.disk == item.disk
    frozen = [p for p in title_teacher_of(folder).llm.parameters() if not p.requires_grad]
    assert title.frozen == sum(p.numel() for p in frozen)


def test_llama_2_7b_has_its_published_size() -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32))
    shape = model_shape(model, SETTINGS.lora)
    assert shape.parameters + shape.head == 6_738_415_616
    # rank 8 in all seven projections: 8 · (4 · 8192 + 3 · 15104) a layer
    assert shape.adapter_parameters(8) == 32 * 8 * (4 * 8192 + 3 * 15104)


def test_the_form_is_the_quantisation_or_the_type() -> None:
    assert weight_format(SETTINGS, torch.float32) == "float32"
    assert weight_format(SETTINGS, torch.bfloat16) == "bfloat16"
    assert weight_format(replace(SETTINGS, quantise="4bit"), torch.bfloat16) == "4bit"


def test_what_is_announced() -> None:
    needs = estimate_resources(
        SHAPE, replace(SETTINGS, lora=LORA), "float32", Workload(rows=2, tokens=5, logits=7, small=2_000_000)
    )
    said = estimate_sentence(needs, Workload(2, 5, 7, 0), 17, 80, SETTINGS)
    assert said == (
        "it trains 2.0 M parameters beside 0.0 M frozen ones; estimated need: 40.0 MB of memory (0.0 MB frozen "
        "weights, 40.0 MB trained parameters and optimiser, 0.0 MB activations) at 2 prompts of up to 5 tokens a "
        "forward pass, 40.0 MB of disk; 17 prompts an epoch with 80 tokens, 3 steps at most"
    )
    # 17 prompts of which 8 make a step, one epoch
    short = "2.0 M of 2.0 M parameters are trained in 3 steps at most, with about 40.0 MB of memory"
    assert need_in_short(needs, 17, SETTINGS) == short


def test_a_run_announces_its_needs_before_it_starts_and_its_pace_later(
    llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="src"):
        trained(llama, train=replace(TRAIN, loop=LoopSettings(epochs=2, batch_size=4, patience=2, monitor="ndcg_5")))
    said = [record.getMessage() for record in caplog.records]
    places = [
        next(place for place, line in enumerate(said) if words in line)
        for words in ("estimated need", "attention sdpa, float32", "epoch 1:", "tokens a second over 10 steps")
    ]
    assert places == sorted(places)
    # 8 rows each of 1, 2, 3, 4 and 5 titles
    teacher = teacher_of(llama)
    tokens = 8 * int(teacher.cost(*walks()).sum())
    assert f"40 prompts an epoch with {tokens} tokens, 20 steps at most" in said[places[0]]


def walks() -> tuple[torch.Tensor, torch.Tensor]:
    """Histories of 1 to 5 one-digit titles."""
    length = torch.arange(1, 6)
    history = torch.arange(5).expand(5, 5)
    return history.masked_fill(history >= length.unsqueeze(1), NUM_ITEMS), length
