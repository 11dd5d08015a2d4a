"""A compiled language model: the same numbers, under each batch's own gate, and nothing about it that is saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, LlamaConfig

from src.teacher.backbone.gated_lora import GatedAdapters, compile_forward, inject
from src.teacher.factory import load_teacher, save_teacher
from src.teacher.settings import LoraSettings
from tests.fixtures import cycle_data
from tests.teacher.builders import CPU, SETTINGS, WIDTH, teacher_of

ONE_MAP = LoraSettings(rank=4, experts=2, target_modules=("q_proj",))
ONE_LAYER = LlamaConfig(
    vocab_size=9, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
)


def adapted() -> GatedAdapters:
    """As little as possible: tracing takes its time."""
    torch.manual_seed(5)
    adapters = inject(AutoModel.from_config(ONE_LAYER), ONE_MAP)
    for name, parameter in adapters.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return adapters


def test_a_compiled_pass_has_the_gate_the_outputs_and_the_gradients_of_an_ordinary_one() -> None:
    torch.manual_seed(6)
    inputs = [torch.randn(3, 5, WIDTH), torch.randn(4, 6, WIDTH)]
    found: list[list[Tensor]] = []
    names = list[list[str]]()
    for compiled in (False, True):
        adapters = adapted()
        if compiled:
            # without code generation: what is traced is looked at here, not the compiler behind it
            compile_forward(adapters, backend="eager")
        states = list[Tensor]()
        for embedded, expert in ((inputs[0], 0), (inputs[0], 1), (inputs[1], 1)):
            gate = torch.eye(2)[[expert] * len(embedded)].requires_grad_()
            with adapters.scope(gate):
                states.append(adapters.model(inputs_embeds=embedded).last_hidden_state)
            states[-1].square().sum().backward()
            assert gate.grad is not None
            states.append(gate.grad)
        found.append(states + [p.grad for p in adapters.model.parameters() if p.grad is not None])
        names.append(list(adapters.model.state_dict()))
        with pytest.raises(RuntimeError, match="without a gate"):
            adapters.model(inputs_embeds=inputs[0])
    assert (found[0][0] - found[0][2]).abs().max() > 1e-3, "the experts differ"
    assert len(found[0]) == len(found[1])
    for plain, compiled_value in zip(*found, strict=True):
        torch.testing.assert_close(plain, compiled_value)
    assert names[0] == names[1]


def test_the_setting_compiles_new_and_loaded_teachers_in_place(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = list[Any]()
    monkeypatch.setattr("src.teacher.factory.compile_forward", lambda adapters: compiled.append(adapters.model))
    settings = replace(SETTINGS, llm=str(llama), compile=True)
    teacher = teacher_of(llama, settings)
    save_teacher(tmp_path / "teacher", teacher, cycle_data(), {})
    loaded = load_teacher(tmp_path / "teacher", settings, cycle_data(), CPU)
    assert compiled == [teacher.llm, loaded.llm]
    load_teacher(tmp_path / "teacher", replace(settings, compile=False), cycle_data(), CPU)
    assert len(compiled) == 2
