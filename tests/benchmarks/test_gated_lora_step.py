"""The step's benchmark: what is checked before anything is measured, and what a lack of memory leaves standing."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest
import torch

from benchmarks import gated_lora_step
from benchmarks.gated_lora_step import arguments, main, measured, row, small_copy, verify
from benchmarks.lora_variants import EXPERTS, GATED, PLAIN, Batch, Variant, build
from benchmarks.model_flops import SHAPES
from benchmarks.random_teacher import Place, random_llama
from src.teacher.settings import LoraSettings

PLACE = Place(torch.device("cpu"), torch.float32)
LORA = LoraSettings(rank=4, experts=2)


def test_the_copy_is_small_and_shares_heads_as_the_shape_does() -> None:
    seven_b = small_copy(SHAPES["llama-2-7b"])
    assert (seven_b.width, seven_b.layers, seven_b.heads, seven_b.key_value_heads) == (256, 2, 4, 4)
    # 32 query heads of 4: fewer than one head of the copy's four
    assert small_copy(SHAPES["tinyllama-1.1b"]).key_value_heads == 1
    assert small_copy(SHAPES["tiny"]) == SHAPES["tiny"]


def test_another_function_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    verify(SHAPES["tiny"], LORA, PLACE.device, checkpointing=False)

    def other(*given: Any) -> dict[str, Variant]:
        variants = build(*given)
        with torch.no_grad():
            next(p for p in variants[GATED].model.parameters() if p.requires_grad).mul_(2)
        return variants

    monkeypatch.setattr(gated_lora_step, "build", other)
    with pytest.raises(SystemExit, match="not the same function"):
        verify(SHAPES["tiny"], LORA, PLACE.device, checkpointing=False)


def test_a_variant_that_does_not_fit_leaves_no_gradients_and_the_others_their_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = gated_lora_step.step
    torch.manual_seed(0)
    variants = build(random_llama(SHAPES["tiny"], PLACE), LORA, False)
    batch = Batch.drawn(2, 4, LORA.experts, 64, PLACE)

    def step(variant: Variant, given: Batch) -> None:
        if any(type(module).__name__ == "ExpertByExpert" for module in variant.model.modules()):
            gated_lora_step.backward(variant, given)
            raise torch.OutOfMemoryError("CUDA out of memory")
        whole(variant, given)

    monkeypatch.setattr(gated_lora_step, "step", step)
    assert measured(variants, EXPERTS, batch, Namespace(rounds=1, repeats=1)) is None
    assert batch.gate_logits.grad is None
    assert all(p.grad is None for name in (PLAIN, EXPERTS) for p in variants[name].model.parameters())
    main(["--shape", "tiny", "--device", "cpu", "--rounds", "1", "--repeats", "1", "--length", "4"])
    tables = capsys.readouterr().out.split("| step |")
    assert GATED in tables[1]
    assert f"| {EXPERTS} | out of memory |" in tables[2]


def test_ratios_are_of_the_same_round() -> None:
    _, milliseconds, of_plain, quartiles, peak, share = row("x", [2.0, 6.0, 3.0], [1.0, 3.0, 2.0], 3 << 20, 2 << 20)
    assert (milliseconds, peak, share) == ("3000.0", "3.0", "1.500")
    # ratios 2, 2, 3/2
    assert (of_plain, quartiles) == ("2.000 (1.500 to 2.000)", "1.500 to 2.000")


def test_options_are_read() -> None:
    assert arguments(["--rounds", "4"]).rounds == 4
