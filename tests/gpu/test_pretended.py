"""The pretended GPU refuses and counts what a real one would; faults that are planted in the program are caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from src.core.seed import torch_generator
from src.distill.terms import ranking, sequence_embedding
from src.student import objectives, trainer_baseline
from src.teacher.operations.teacher_check import student_ranker
from tests.fixtures import cycle_data
from tests.gpu.pretended import CPU, GPU, MixedDevices, PretendedGPU, device_of
from tests.gpu.stages import distilled, per_step, student, student_settings
from tests.gpu.test_steps import ALONE, TAUGHT, assert_within


def test_tensors_keep_their_device_and_do_not_mix() -> None:
    with PretendedGPU():
        here, there = torch.ones(2, 3), torch.ones(2, 3, device="cuda")
        assert (here.device, there.device, there.is_cuda, there.get_device()) == (CPU, GPU, True, 0)
        for made in (there + 1, there[0], there.T, torch.zeros_like(there), there.new_ones(1), here.to(there)):
            assert device_of(made) == GPU
        assert there.to("cuda") is there
        assert device_of(there.cpu()) == CPU
        assert torch.equal(there.cpu(), here)
        assert device_of(there * torch.tensor(2.0)) == GPU  # a number of the host goes everywhere
        with pytest.raises(MixedDevices, match="aten::add.Tensor over tensors of both devices"):
            there + here
        with pytest.raises(MixedDevices, match="the index lies on the GPU"):
            here[torch.tensor([0], device="cuda")]
        with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
            there.numpy()
    assert torch.ones(1).device == CPU
    assert not torch.cuda.is_available()


def test_gradients_and_optimisers_stay_on_the_gpu() -> None:
    with PretendedGPU() as gpu:
        layer = torch.nn.Linear(3, 1).to("cuda")
        layer(torch.ones(2, 3, device=GPU)).sum().backward()
        assert layer.weight.grad is not None
        assert device_of(layer.weight.grad) == GPU
        torch.optim.Adam(layer.parameters(), fused=True).step()
        assert gpu.kernels["aten::_fused_adam_"] == 1


def test_a_stream_belongs_to_a_device() -> None:
    with PretendedGPU():
        stream = torch_generator(0, "x", device=GPU)
        assert device_of(torch.rand(2, generator=stream, device=stream.device)) == GPU
        with pytest.raises(MixedDevices, match="a generator of the other device"):
            torch.rand(2, generator=torch_generator(0, "x"), device="cuda")


def test_waits_are_counted_with_their_place() -> None:
    with PretendedGPU() as gpu:
        tensor = torch.ones(3, device="cuda")
        gpu.waits.clear()
        float(tensor.sum())
        tensor.tolist()
        tensor[tensor > 0]
        tensor.cpu()
        torch.ones(3).to("cuda", non_blocking=True)
    place = "test_pretended.py test_waits_are_counted_with_their_place"
    assert gpu.waits == {
        f"aten::_local_scalar_dense: {place}": 1,
        f"tolist: {place}": 1,
        f"mask as an index: {place}": 1,
        f"copy to the host: {place}": 1,
    }


def test_memory_is_limited_and_counted_as_torch_does() -> None:
    with PretendedGPU() as gpu:
        with pytest.raises(ValueError, match="Expected a torch.device with a specified index"):
            torch.cuda.set_per_process_memory_fraction(0.5, torch.device("cuda"))
        with pytest.raises(RuntimeError, match="Invalid device argument"):
            torch.cuda.reset_peak_memory_stats(GPU)
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(GPU)
        torch.cuda.set_per_process_memory_fraction(0.5, GPU)
        assert gpu.limits == [0.5]


# ------------------------------------------------------------------------------------------------------ planted faults


def train_alone(gpu: PretendedGPU) -> None:
    assert_within(per_step(gpu, lambda rows: student(GPU, student_settings(), rows)), ALONE["sasrec", "ce"])


def train_taught(gpu: PretendedGPU) -> None:
    found = per_step(gpu, lambda rows: distilled(GPU, student_settings(), train=rows))
    assert_within(found, TAUGHT["sasrec", "all"])


def on_the_host(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A result that was left on the host."""
    return lambda *arguments: original(*arguments).cpu()


def as_a_number(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A look at a tensor's value."""

    def looks(*arguments: Any) -> Tensor:
        result = original(*arguments)
        return result if bool(result.detach() >= 0) else -result

    return looks


def once_more(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An operation that nobody needs."""
    return lambda *arguments: original(*arguments) + 0


@pytest.mark.parametrize(
    ("place", "name", "fault", "train", "caught"),
    [
        (objectives, "ce_loss", as_a_number, train_alone, "waits in every step"),
        (objectives, "ce_loss", once_more, train_alone, "operations a step, 134 are recorded"),
        (ranking, "position_weights", on_the_host, train_taught, "tensors of both devices"),
        (sequence_embedding, "embedding_loss", as_a_number, train_taught, "waits in every step"),
        (ranking, "weighted_bce", once_more, train_taught, "operations a step, 398 are recorded"),
    ],
    ids=["look", "more work", "left on the host", "look in a term", "more work in a term"],
)
def test_a_planted_fault_is_caught(
    monkeypatch: pytest.MonkeyPatch,
    place: object,
    name: str,
    fault: Callable[[Callable[..., Tensor]], Callable[..., Tensor]],
    train: Callable[[PretendedGPU], None],
    caught: str,
) -> None:
    with PretendedGPU() as gpu:
        train(gpu)  # without the fault nothing is said
        monkeypatch.setattr(place, name, fault(getattr(place, name)))
        with pytest.raises((AssertionError, MixedDevices), match=caught):
            train(gpu)


def test_a_stream_left_on_the_host_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def draws(seed: int, *purpose: object, device: object = "cpu") -> torch.Generator:
        return torch_generator(seed, *purpose)

    monkeypatch.setattr(trainer_baseline, "torch_generator", draws)
    settings = student_settings(loss="bce")
    with PretendedGPU() as gpu:
        found = per_step(gpu, lambda rows: student(GPU, settings, rows))
    with pytest.raises(AssertionError, match=r"copy to the GPU: data/candidates.py"):
        assert_within(found, ALONE["sasrec", "bce"])


def test_a_forgotten_copy_to_the_host_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    with PretendedGPU():
        ranker, examples = student_ranker(student(GPU, student_settings()), 4, True), cycle_data().validation
        ranker(examples)
        monkeypatch.setattr(Tensor, "cpu", lambda tensor: tensor)
        with pytest.raises(MixedDevices, match="the index lies on the GPU"):
            ranker(examples)
