"""A lone fit's gradients as one CUDA graph: a small model's step is bound by its few hundred launches, not by its work.

Forward and backward pass are captured once, on rows that lie in one place, and replayed; the optimiser's step, the mean
and everything between steps are as ever. Where a capture is not possible the step stays what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from src.core.errors import first_line
from src.core.logging import get_logger
from src.core.training import AloneStep, Fitting

_log = get_logger(__name__)

#: ordinary steps before the capture: what a library sets up at its first call must not be a part of it
WARM = 3

#: ``capture(work, streams)``: does ``work`` once without an effect, and gives what replays it, and its result, which a
#: replay writes anew; ``streams`` are the device's generators that it draws from, besides the device's own
Capture = Callable[[Callable[[], Tensor], Sequence[torch.Generator]], tuple[Callable[[], None], Tensor]]


def cuda_capture(work: Callable[[], Tensor], streams: Sequence[torch.Generator]) -> tuple[Callable[[], None], Tensor]:
    """A `Capture` by CUDA."""
    graph: Any = torch.cuda.CUDAGraph()
    for stream in streams:
        graph.register_generator_state(stream)
    with torch.cuda.graph(graph):
        result = work()
    return graph.replay, result


def step_of(fit: Fitting, graphs: str) -> AloneStep | None:
    """The step of a lone fit under ``student.graphs``; None for the ordinary one."""
    if graphs == "off" or fit.device.type != "cuda":
        return None
    return GraphedStep(fit)


class GraphedStep(AloneStep):
    """As `AloneStep`; full batches are replayed where they could be captured."""

    def __init__(self, fit: Fitting, capture: Capture = cuda_capture) -> None:
        super().__init__(fit)
        self._capture_by, self._seen = capture, 0
        # a loss over sampled items has gradients of a few rows alone, other ones in each step
        self._possible = type(fit.optimiser) is torch.optim.Adam
        self._replay: Callable[[], None] | None = None
        self._counted: Sequence[str] = getattr(fit.objective, "counted", ())

    def _gradients(self, rows: Tensor) -> Tensor:
        if not (self._possible and self._is_full(rows)):
            return super()._gradients(rows)
        if self._replay is None and self._seen < WARM:
            self._seen += 1
            return super()._gradients(rows)
        if self._replay is None:
            self._capture(rows)
        return super()._gradients(rows) if self._replay is None else self._replayed(rows)

    def _is_full(self, rows: Tensor) -> bool:
        """Whether this is a batch of the usual size, in one pass: the last one of an epoch may be smaller."""
        fit = self.fit
        size = min(fit.settings.batch_size, fit.train_rows)
        return len(rows) == size and not 0 < fit.progress.micro_batch_size < size

    def _capture(self, rows: Tensor) -> None:
        fit, own = self.fit, vars(self.fit.objective)
        before, drawn = {name: own[name] for name in self._counted}, fit.randomness.save()
        self._rows = rows.clone()
        fit.optimiser.zero_grad(set_to_none=True)
        own.update(dict.fromkeys(self._counted, 0.0))
        streams = [s for s in fit.randomness.streams if isinstance(s, torch.Generator) and s.device == fit.device]
        try:
            self._replay, self._loss = self._capture_by(self._work, streams)
            self._added = {name: own[name] for name in self._counted}
            parameters = [p for group in fit.optimiser.param_groups for p in group["params"]]
            self._gradient = [(parameter, parameter.grad) for parameter in parameters]
        except RuntimeError as error:  # whatever a device, a driver or an operation has against it
            self._possible = False
            fit.randomness.load(drawn)
            _log.debug("steps are not captured: %s", first_line(error))
        finally:
            own.update(before)

    def _work(self) -> Tensor:
        loss = self.fit.objective.loss(self._rows)
        loss.backward()
        return loss.detach()

    def _replayed(self, rows: Tensor) -> Tensor:
        assert self._replay is not None
        self._rows.copy_(rows)
        for parameter, gradient in self._gradient:
            parameter.grad = gradient
        self._replay()
        own = vars(self.fit.objective)
        own.update({name: own[name] + added for name, added in self._added.items()})
        return self._loss.clone()
