"""Students that train as one, on a pretended GPU: devices, waits and operations of a step, and a search's worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from src.core import member_draws, stacked_members
from src.core.stacked_members import StackedMembers
from src.distill.settings import DistillSettings
from src.distill.terms import ranking
from src.tuning.dispatch import CHECKPOINT, MODEL
from tests.gpu.pretended import CPU, GPU, MixedDevices, PretendedGPU, device_of
from tests.gpu.stages import EVERYTHING, PerStep, population_step, student_settings, together
from tests.gpu.test_pretended import on_the_host
from tests.gpu.test_students import assert_same
from tests.tuning.test_population_trials import SHARE, searched, shared_data

pytestmark = pytest.mark.filterwarnings("ignore:PyTorch was compiled without cuDNN")

#: operations of a step of two students, and those that each further one adds: its dropout masks, its negatives, and
#: what tells it of its own loss. Alone a step has 138, 182 and 411 (`tests/gpu/test_steps.py`)
OPERATIONS: dict[str, tuple[dict[str, Any], DistillSettings | None, int, int]] = {
    "alone": ({}, None, 261, 7),
    "alone, bce": ({"architecture": "sasrec", "loss": "bce"}, None, 284, 6),
    "taught": ({}, EVERYTHING, 556, 9),
    "taught, clipped, in parts": ({"gradient_clip": 1.0, "micro_batch_size": 8, "ema": 0.9}, EVERYTHING, 1108, 17),
}


def cost(gpu: PretendedGPU, form: str, members: int = 2) -> PerStep:
    """Of one step of all members."""
    changes, distill, *_ = OPERATIONS[form]
    settings = student_settings(**{"architecture": "transformer", **changes})
    return population_step(gpu, settings, distill=distill, count=members)


@pytest.mark.parametrize("form", OPERATIONS)
def test_a_step_of_a_population(form: str) -> None:
    *_, kernels, more = OPERATIONS[form]
    with PretendedGPU() as gpu:
        two, four = cost(gpu, form), cost(gpu, form, members=4)
    assert two.waits == four.waits == {}
    assert two.kernels <= kernels
    assert (four.kernels - two.kernels) / 2 <= more


@pytest.mark.parametrize(
    ("loss", "prior", "policy"),
    [("ce", "linear", "all"), ("ce", "none", "kl_divergence"), ("bce", "none", "ground_truth_error")],
)
def test_members_are_those_of_the_cpu(loss: str, prior: str, policy: str) -> None:
    """Without dropout, whose masks a GPU draws in another way."""
    settings = student_settings("transformer", loss, prior=prior, dropout=0.0, ema=0.9)
    asked: dict[str, Any] = {"policy": policy, "prior": prior, "count": 2}
    on_cpu = together(CPU, settings, **asked)
    with PretendedGPU():
        for ours, theirs in zip(together(GPU, settings, **asked), on_cpu, strict=True):
            assert_same(ours, theirs)


def test_a_mask_is_a_members_own_and_keeps_as_many_as_its_rate_says() -> None:
    with PretendedGPU():
        like, rates = torch.ones(1, device=GPU), torch.tensor([0.2, 0.5], device=GPU)

        def drawn(seeds: tuple[int, ...], rates: Tensor) -> Tensor:
            streams = [torch.Generator(device="cuda").manual_seed(seed) for seed in seeds]
            return member_draws._masks(streams, rates, (4000,), like)

        both = drawn((3, 4), rates)
        assert device_of(both) == GPU
        assert torch.equal(both[1], drawn((4,), rates[1:])[0])  # whoever else is there
        for mask, rate in zip(both.cpu(), (0.2, 0.5), strict=True):
            assert sorted(set(mask.tolist())) == pytest.approx([0.0, 1 / (1 - rate)])
            # five standard deviations of a share of 4000 draws
            assert float((mask == 0).double().mean()) == pytest.approx(rate, abs=5 * (rate * (1 - rate) / 4000) ** 0.5)


def test_a_search_trains_its_trials_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with PretendedGPU(count=1) as gpu:
        trials, store, driver = searched(
            tmp_path, shared_data(), 2, 3, monkeypatch, device="auto", share={**SHARE, "share": 1.0}
        )
    assert gpu.kernels["aten::uniform_"] > 0
    assert [len(crew.jobs) for crew in driver.crews] == [1, 2]
    assert all(trial.state.name == "COMPLETE" for trial in trials)
    for trial in trials:
        assert store.exists(f"{trial.number}/{MODEL}")
        assert store.exists(f"{trial.number}/{CHECKPOINT}")
        assert b"in turns" not in (store.read(f"{trial.number}/trial.log") or b"")


# ------------------------------------------------------------------------------------------------------ planted faults


def waiting(original: Callable[..., Any]) -> Callable[..., Any]:
    """Rates that are brought to the device in every step."""

    def looks(self: StackedMembers, gradient: Tensor) -> None:
        self._rate = torch.tensor([[0.01]] * len(gradient), device=gradient.device)
        original(self, gradient)

    return looks


def each_its_own(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An operation for each member, where one would do for all."""

    def masks(streams: Any, rate: Any, shape: Any, like: Tensor) -> Tensor:
        return torch.stack([row + 0 for row in original(streams, rate, shape, like)])

    return masks


@pytest.mark.parametrize(
    ("place", "name", "fault", "caught"),
    [
        (StackedMembers, "_descend", waiting, "copy to the GPU: core/stacked_members.py|test_population.py looks"),
        (member_draws, "_masks", each_its_own, "operations"),
        (ranking, "position_weights", on_the_host, "tensors of both devices"),
    ],
    ids=["a wait", "work by members", "left on the host"],
)
def test_a_planted_fault_is_caught(
    monkeypatch: pytest.MonkeyPatch, place: object, name: str, fault: Callable[..., Any], caught: str
) -> None:
    monkeypatch.setattr(place, name, fault(getattr(place, name)))

    def within(form: str) -> None:
        with PretendedGPU() as gpu:
            found = cost(gpu, form)
        assert found.waits == {}
        assert found.kernels <= OPERATIONS[form][2], f"{found.kernels} operations a step"

    with pytest.raises((AssertionError, MixedDevices), match=caught):
        within("taught")


def test_what_would_be_checked_with_other_masks_than_it_trains_with_is_no_population(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GPU's own dropout draws other masks: members that were compared with it would train in turns."""
    monkeypatch.setattr(stacked_members, "MemberDraws", Otherwise)
    with PretendedGPU(), pytest.raises(AssertionError, match="batched"):
        together(GPU, student_settings("transformer"), distill=None)


class Otherwise(member_draws.MemberDraws):
    """Draws for a single member as torch's dropout does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Of all members, as ever."""
        if len(self.streams) > 1:
            return super().__torch_function__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))
