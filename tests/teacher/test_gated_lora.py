"""The gate inside PEFT's LoRA layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from src.core.errors import ModelError
from src.teacher.backbone.gated_lora import ADAPTER, GatedAdapters, adaptable_layers, checkpoint_activations, inject
from src.teacher.backbone.llm import load_llm
from src.teacher.settings import LoraSettings
from tests.teacher.builders import CPU, WIDTH

SETTINGS = LoraSettings(rank=8, experts=4, alpha=16.0)


def adapted(folder: Path, settings: LoraSettings = SETTINGS) -> GatedAdapters:
    """A frozen model with experts that do something."""
    model = load_llm(str(folder), "auto", CPU).model
    torch.manual_seed(5)
    adapters = inject(model, settings)
    with torch.no_grad():
        for name, parameter in adapters.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return adapters


def states(model: nn.Module, embedded: Tensor) -> Tensor:
    """``[B, S, D]``."""
    return cast(Tensor, model(inputs_embeds=embedded, attention_mask=torch.ones(embedded.shape[:2])).last_hidden_state)


def test_gates_change_the_output(llm: Path) -> None:
    adapters, embedded = adapted(llm), torch.randn(2, 5, WIDTH)
    outputs = []
    for gate in ([0.25] * 4, [0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]):
        with adapters.scope(torch.tensor([gate, gate])):
            outputs.append(states(adapters.model, embedded))
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3
    assert (outputs[1] - outputs[2]).abs().max() > 1e-3


@pytest.mark.parametrize(("compute", "dtype"), [("base", torch.bfloat16), ("float32", torch.float32)])
def test_adapters_are_stored_in_float32_and_multiplied_as_the_settings_say(
    llm: Path, compute: Literal["base", "float32"], dtype: torch.dtype
) -> None:
    model = load_llm(str(llm), "bfloat16", CPU).model
    adapters = inject(model, replace(SETTINGS, compute=compute))
    inner: list[Tensor] = []
    for layer in lora_layers(adapters.model):
        layer.lora_A[ADAPTER].register_forward_hook(lambda module, inputs, output: inner.append(output))
    with adapters.scope(torch.full((2, 4), 0.25)):
        outputs = states(adapters.model, torch.randn(2, 5, WIDTH, dtype=torch.bfloat16))
    assert {tensor.dtype for tensor in inner} == {dtype}
    assert outputs.dtype == torch.bfloat16
    outputs.float().square().sum().backward()
    trained = [parameter for parameter in adapters.model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert any(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in trained)


def test_adapters_that_compute_in_half_precision_round_like_the_model_around_them(llm: Path) -> None:
    embedded, gate = torch.randn(4, 9, WIDTH), torch.tensor([[0.7, 0.1, 0.1, 0.1]] * 4)

    def found(compute: Literal["base", "float32"], dtype: torch.dtype) -> Tensor:
        adapters = adapted(llm, replace(SETTINGS, compute=compute))
        adapters.model.to(dtype)
        for layer in lora_layers(adapters.model):
            layer.lora_A.float()
            layer.lora_B.float()
        with adapters.scope(gate):
            return states(adapters.model, embedded.to(dtype)).float()

    exact = found("float32", torch.float32)
    torch.testing.assert_close(found("base", torch.float32), exact, rtol=0, atol=0)
    own, copied = ((found(way, torch.bfloat16) - exact).abs().mean() for way in ("base", "float32"))
    # the model's own rounding is there either way; that of the adapters is of the same size
    assert 0 < copied < own < 2 * copied


@pytest.mark.parametrize("expert", range(4))
def test_a_one_hot_gate_is_that_single_expert_as_a_plain_lora(llm: Path, expert: int) -> None:
    adapters, embedded = adapted(llm), torch.randn(2, 5, WIDTH)
    with adapters.scope(nn.functional.one_hot(torch.tensor([expert, expert]), 4).float()):
        gated = states(adapters.model, embedded)

    plain = load_llm(str(llm), "auto", CPU).model
    config = adapters.model.peft_config[ADAPTER]
    rank = SETTINGS.rank // SETTINGS.experts
    single = get_peft_model(
        plain,
        LoraConfig(
            r=rank,
            lora_alpha=cast(int, SETTINGS.alpha),  # alpha / (r / E), the released scaling of one expert
            target_modules=config.target_modules,
            exclude_modules=config.exclude_modules,
        ),
    )
    own = slice(expert * rank, (expert + 1) * rank)
    with torch.no_grad():
        for mine, theirs in zip(lora_layers(single), lora_layers(adapters.model), strict=True):
            mine.lora_A[ADAPTER].weight.copy_(theirs.lora_A[ADAPTER].weight[own])
            mine.lora_B[ADAPTER].weight.copy_(theirs.lora_B[ADAPTER].weight[:, own])
    torch.testing.assert_close(gated, states(single, embedded), rtol=1e-4, atol=1e-5)


def lora_layers(model: nn.Module) -> list[Any]:
    """PEFT's layers, in order."""
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def test_each_sequence_has_its_own_gate(llm: Path) -> None:
    adapters, embedded = adapted(llm), torch.randn(2, 5, WIDTH)
    gates = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]])
    with adapters.scope(gates):
        together = states(adapters.model, embedded)
    for row in range(2):
        with adapters.scope(gates[row : row + 1]):
            torch.testing.assert_close(states(adapters.model, embedded[row : row + 1])[0], together[row])


def test_experts_never_run_without_a_gate(llm: Path) -> None:
    adapters, embedded = adapted(llm), torch.randn(2, 5, WIDTH)
    with pytest.raises(RuntimeError, match="without a gate"):
        states(adapters.model, embedded)
    with adapters.scope(torch.ones(2, 4) / 4):
        pass
    with pytest.raises(RuntimeError, match="without a gate"):
        states(adapters.model, embedded)


def test_a_scope_closes_also_after_an_error_and_gives_the_outer_one_back(llama: Path) -> None:
    scope = adapted(llama).scope
    outer, inner = torch.ones(1, 4), torch.zeros(1, 4)
    with scope(outer):
        with pytest.raises(ZeroDivisionError), scope(inner):
            _ = 1 // 0
        assert scope.gate_weights is outer
    assert scope.gate_weights is None


def test_disabled_adapters_need_no_gate_and_are_the_base_model(llm: Path) -> None:
    adapters, embedded = adapted(llm), torch.randn(2, 5, WIDTH)
    with adapters.model.disable_adapter():
        found = states(adapters.model, embedded)
    torch.testing.assert_close(found, states(load_llm(str(llm), "auto", CPU).model, embedded))


@pytest.mark.parametrize("shape", [(3, 4), (1, 4), (2, 3), (2, 1, 4)])
def test_a_gate_of_another_batch_or_number_of_experts_is_refused(llama: Path, shape: tuple[int, ...]) -> None:
    adapters = adapted(llama)
    with pytest.raises(ValueError, match="2 sequences met 4 experts"), adapters.scope(torch.ones(shape)):
        states(adapters.model, torch.randn(2, 5, WIDTH))


def test_auto_adapts_every_linear_layer_but_the_pooler(llama: Path, bert: Path) -> None:
    assert adapted(llama).layers == 2 * 7
    encoder = load_llm(str(bert), "auto", CPU).model
    layers, excluded = adaptable_layers(encoder)
    assert (len(layers), excluded) == (2 * 6, ["pooler.dense"])
    assert adapted(bert).layers == 2 * 6


def test_named_layers_are_adapted_and_unknown_names_refused(llama: Path) -> None:
    assert adapted(llama, LoraSettings(rank=4, experts=2, target_modules=("q_proj", "v_proj"))).layers == 4
    with pytest.raises(ModelError, match=r"qq_proj.*choose from .*q_proj"):
        adapted(llama, LoraSettings(target_modules=("qq_proj",)))


@pytest.mark.parametrize("rows", [2, 1])
def test_gradients_are_the_same_with_checkpointing(llm: Path, rows: int) -> None:
    torch.manual_seed(6)
    embedded = torch.randn(rows, 5, WIDTH)
    found = []
    for checkpointing in (False, True):
        adapters = adapted(llm)
        if checkpointing:
            checkpoint_activations(adapters)
        adapters.model.train()
        gate = torch.softmax(torch.arange(4.0 * rows).view(rows, 4) / 3, dim=1).requires_grad_()
        with adapters.scope(gate):
            loss = states(adapters.model, embedded).square().mul(torch.linspace(0, 1, WIDTH)).sum()
        loss.backward()  # outside of the scope: recomputation must find the gate of its own forward pass
        trained = [p for p in adapters.model.parameters() if p.requires_grad]
        found.append([gate.grad, *(p.grad for p in trained)])
    assert len(found[0]) == len(found[1]) > 10
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_recomputation_keeps_the_gate_of_its_own_pass_when_another_is_open(llama: Path) -> None:
    embedded, first, second = torch.randn(1, 5, WIDTH), torch.eye(4)[:1], torch.eye(4)[1:2]
    gradients = []
    for disturb in (False, True):
        adapters = adapted(llama)
        checkpoint_activations(adapters)
        adapters.model.train()
        runs = list[nn.Module]()
        lora_layers(adapters.model)[0].lora_A[ADAPTER].register_forward_hook(
            lambda layer, *_, runs=runs: runs.append(layer)
        )
        with adapters.scope(first):
            loss = states(adapters.model, embedded).square().mean()
        if disturb:
            with adapters.scope(second):
                loss.backward()
        else:
            loss.backward()
        assert len(runs) == 2, "once forward and once in the recomputation"
        gradients.append([p.grad for p in adapters.model.parameters() if p.requires_grad])
    for alone, disturbed in zip(*gradients, strict=True):
        torch.testing.assert_close(alone, disturbed)
