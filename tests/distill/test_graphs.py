"""A step that is captured and replayed gives the numbers of the ordinary one, and is that where it cannot be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from src.core.graphs import WARM, GraphedStep, step_of
from src.core.loop_settings import LoopSettings
from src.core.training import Fitting
from src.distill.data_bridge import align
from src.distill.settings import ActiveSettings, DistillSettings
from src.distill.trainer_distill import prepare_distilled
from src.student.datamodule import StudentData
from src.student.settings import EvaluationSettings
from tests.fixtures import cycle_data, outputs_for, student_of

ROWS = 100  # with batches of 16: six full ones an epoch, and one of four rows


def fit_on(device: str, **student: Any) -> Fitting:
    data, loop = cycle_data(train=ROWS), LoopSettings(epochs=3, batch_size=16, monitor="ndcg_5", ema=0.9)
    teaching = align(outputs_for(data.train, np.arange(0, ROWS, 2)), data.train, 4, device)
    settings = student_of("transformer", **{"width": 8, "loop": loop, "prior": "none", "dropout": 0.2, **student})
    distill, policy = DistillSettings(candidate_topk=4), ActiveSettings(policy="kl_divergence", kl_threshold=0.1)
    evaluation = EvaluationSettings(ks=(5,))
    return prepare_distilled(settings, distill, policy, evaluation, StudentData.of(data, device), teaching, seed=3)[1]


class OnPaper:
    """Captures as a GPU does it, as far as a caller can see: nothing happens at the capture, and each replay writes the
    same tensors again."""

    def __init__(self, fit: Fitting) -> None:
        self.fit, self.replays = fit, 0

    def __call__(
        self, work: Callable[[], Tensor], streams: Sequence[torch.Generator]
    ) -> tuple[Callable[[], None], Tensor]:
        drawn, parameters = self.fit.randomness.save(), list(self.fit.module.parameters())
        result = work()
        for stream, state in zip(self.fit.randomness.streams, drawn["streams"], strict=True):
            if isinstance(stream, torch.Generator):
                stream.set_state(state)
        torch.set_rng_state(drawn["global_stream"])
        gradients = [parameter.grad for parameter in parameters]
        objective: Any = self.fit.objective
        counted = objective.rows_taught

        def replay() -> None:
            self.replays += 1
            for parameter in parameters:
                parameter.grad = None
            before = objective.rows_seen, objective.rows_taught
            objective.rows_seen, objective.rows_taught = 0, 0.0
            result.copy_(work())
            counted.copy_(objective.rows_taught)
            objective.rows_seen, objective.rows_taught = before
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    gradient.copy_(parameter.grad)  # type: ignore[arg-type]
                    parameter.grad = gradient

        return replay, result


def test_replayed_steps_give_the_numbers_of_ordinary_ones() -> None:
    ordinary = fit_on("cpu").alone()
    fit = fit_on("cpu")
    paper = OnPaper(fit)
    result = fit.alone(GraphedStep(fit, paper))
    # three epochs of six full batches, the first of which warm up
    assert paper.replays == 3 * 6 - WARM
    assert result.history == ordinary.history


def test_where_nothing_can_be_captured_the_step_stays_the_ordinary_one() -> None:
    ordinary, tried = fit_on("cpu").alone(), list[int]()

    def refuse(work: Callable[[], Tensor], streams: Sequence[torch.Generator]) -> Any:
        tried.append(len(streams))
        work()  # what it has drawn and counted by then must be undone
        raise RuntimeError("operation not permitted when stream is capturing")

    fit = fit_on("cpu")
    result = fit.alone(GraphedStep(fit, refuse))
    assert len(tried) == 1
    assert result.history == ordinary.history


IN_PARTS = LoopSettings(epochs=2, batch_size=16, micro_batch_size=5, monitor="ndcg_5")


@pytest.mark.parametrize("student", [{"loss": "sampled", "shared_negatives": 6}, {"loop": IN_PARTS}])
def test_sampled_losses_and_batches_in_parts_are_not_captured(student: dict[str, Any]) -> None:
    def refuse(work: Callable[[], Tensor], streams: Sequence[torch.Generator]) -> Any:
        raise AssertionError

    fit = fit_on("cpu", **student)
    fit.alone(GraphedStep(fit, refuse))


def test_nothing_is_captured_on_a_cpu() -> None:
    assert step_of(fit_on("cpu"), "auto") is None
    assert step_of(fit_on("cpu"), "off") is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_step_gives_the_numbers_of_the_ordinary_one_on_a_gpu() -> None:
    ordinary = fit_on("cuda").alone()
    fit = fit_on("cuda")
    step = step_of(fit, "auto")
    assert isinstance(step, GraphedStep)
    result = fit.alone(step)
    assert step._replay is not None
    assert result.history == ordinary.history
