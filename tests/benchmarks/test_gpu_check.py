"""The first look at a GPU, on a pretended one: its parts call what a GPU has, and keep their tensors there."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_check import EVERYTHING, facts, made_up, rate
from tests.gpu.pretended import GPU, PretendedGPU


def test_facts_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: None)
    with PretendedGPU():
        (shown,) = facts(GPU)
    assert "| memory, GiB | 80.0, 79.0 free |" in shown
    assert "| this process as nvidia-smi sees it, MiB | no nvidia-smi |" in shown
    assert "| what a share leaves for that, MiB | 600 |" in shown


@pytest.mark.parametrize("distill", [None, EVERYTHING])
def test_a_rate_is_measured_on_the_gpu(distill: object) -> None:
    with PretendedGPU() as gpu:
        data, teaching = made_up(GPU, 50, 1)
        gpu.waits.clear()
        assert rate(data, teaching, distill, 0.0) > 0  # type: ignore[arg-type]
        assert gpu.kernels["aten::_fused_adam_"] == 2


def test_determinism_is_switched_off_for_the_comparison_alone() -> None:
    with gpu_check._not_deterministic():
        torch.use_deterministic_algorithms(True)
        assert not torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)


def test_without_mps_there_is_one_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "_at_once", lambda device, count: 10.0 * count**0.5)
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: None)
    (shown,) = gpu_check.together(GPU)
    assert shown.splitlines()[0] == "| at once | in turns: steps/s (of one), trials/h |"
    # 3,600 seconds of 40 steps, 1,890 of which are a trial
    assert shown.splitlines()[-1] == "| 16 | 40 (4.0), 76 |"
