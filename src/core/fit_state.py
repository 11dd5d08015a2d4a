"""How far a fit is, and everything that it changes: what a checkpoint holds, and when one is due."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from src.core.checkpoints import State, changing, restore, snapshot
from src.core.lazy_adam import LazyAdam
from src.core.weight_mean import WeightMean


class Stream(Protocol):
    """Something that an objective draws from, or counts in, besides the module: a `torch.Generator`, for one."""

    def get_state(self) -> Tensor:
        """The generator's state, as a tensor of its own."""

    def set_state(self, state: Tensor, /) -> object:
        """Put it where it stood."""


@dataclass
class Progress:
    """How far a fit is: everything but the tensors that module, optimiser and streams hold themselves.

    Of the epoch that is running: ``order`` the state, at its beginning, of the generator that orders it (None between
    epochs), ``epoch_steps`` the steps done, ``loss`` the mean loss so far, a scalar tensor.
    """

    epoch: int = 0
    steps: int = 0
    stale: int = 0
    seconds: float = 0.0
    micro_batch_size: int = 0
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_state: State = field(default_factory=dict)
    order: Tensor | None = None
    epoch_steps: int = 0
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))

    def best_metrics(self) -> dict[str, float]:
        """Metrics of the best epoch so far."""
        return self.history[self.best_epoch - 1]

    def told(self) -> str:
        """As a person says it."""
        return f"epochs done: {self.epoch}, steps of the next one: {self.epoch_steps}"

    def left(
        self, draw: Callable[[torch.Generator], Iterator[Tensor]], generator: torch.Generator, device: torch.device
    ) -> Iterator[Tensor]:
        """The batches of the running epoch that are still to come; of a new epoch, all that ``draw`` gives.

        Args:
            draw: gives an epoch's batches in the order that a generator draws.
            generator: its state at the beginning of the epoch is kept, and restored when the epoch goes on.
            device: where the epoch's loss is summed.
        """
        if self.order is None:
            self.order, self.epoch_steps, self.loss = generator.get_state(), 0, torch.zeros((), device=device)
        else:
            # drawn once more, the generator comes to where it was
            generator.set_state(self.order)
        return islice(draw(generator), self.epoch_steps, None)

    def add(self, loss: Tensor, share: float) -> None:
        """Take in a step's mean loss, over this share of the epoch's rows."""
        self.loss = self.loss + loss * share
        self.epoch_steps += 1

    def update_best(self, metrics: dict[str, float], monitor: str, module: nn.Module) -> None:
        """Take an epoch's metrics in, and the module's state when it is the best so far.

        Args:
            metrics: of the epoch that has ended.
            monitor: the one that is compared; higher is better.
            module: whose state is kept.
        """
        self.epoch += 1
        self.order, self.epoch_steps = None, 0
        self.history.append(metrics)
        if self.best_epoch == 0 or metrics[monitor] > self.best_metrics()[monitor]:
            self.best_epoch, self.stale, self.best_state = self.epoch, 0, snapshot(module)
        else:
            self.stale += 1


@dataclass(frozen=True, eq=False)
class Randomness:
    """The streams that a step draws from: the objective's, and torch's global one and the device's, for dropout.

    ``own`` stands in place of these two, or of the device's on a GPU, in a fit among others in one process.
    """

    streams: Sequence[Stream]
    device: torch.device
    own: torch.Generator | None = None

    def save(self) -> dict[str, Any]:
        """The state of each stream."""
        on_gpu = self.device.type == "cuda"
        own = None if self.own is None else self.own.get_state()
        return {
            "streams": [stream.get_state() for stream in self.streams],
            "global_stream": torch.get_rng_state() if own is None or on_gpu else own,
            "device_stream": (torch.cuda.get_rng_state(self.device) if own is None else own) if on_gpu else None,
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Put them back."""
        for stream, state in zip(self.streams, saved["streams"], strict=True):
            stream.set_state(state)
        on_gpu = self.device.type == "cuda"
        if self.own is not None:
            self.own.set_state(saved["device_stream" if on_gpu else "global_stream"])
            return
        torch.set_rng_state(saved["global_stream"])
        if on_gpu and saved["device_stream"] is not None:
            torch.cuda.set_rng_state(saved["device_stream"], self.device)


@dataclass(frozen=True, eq=False)
class FitState:
    """What a fit changes besides its progress."""

    module: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler | None
    randomness: Randomness
    mean: WeightMean | None = None

    def save(self, progress: Progress) -> dict[str, Any]:
        """As one mapping, from which the fit goes on to the last bit."""
        return {
            "progress": {item.name: getattr(progress, item.name) for item in fields(progress)},
            "module": snapshot(self.module),
            "optimiser": _of_its_own(self.optimiser.state_dict()),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            **({} if self.mean is None else {"mean": self.mean.state()}),
            **self.randomness.save(),
        }

    def size(self, progress: Progress) -> int:
        """How many bytes of tensors `save` would write, about."""
        moments = self.optimiser.held() if isinstance(self.optimiser, LazyAdam) else _held(self.optimiser)
        means = [] if self.mean is None else self.mean.held()
        held = (*changing(self.module).values(), *moments, *means, *progress.best_state.values())
        return sum(value.numel() * value.element_size() for value in held)

    def load(self, saved: Mapping[str, Any]) -> Progress:
        """Put everything back; raises ``ArtefactError`` when it is another training's."""
        restore(self.module, saved["module"])
        if self.mean is not None:
            self.mean.load(saved.get("mean", {}))
        self.optimiser.load_state_dict(saved["optimiser"])
        if self.schedule is not None:
            self.schedule.load_state_dict(saved["schedule"])
        self.randomness.load(saved)
        progress = Progress(**saved["progress"])
        progress.loss = progress.loss.to(self.randomness.device)
        return progress


def _of_its_own(value: Any) -> Any:
    """Nested plain data whose tensors hold nothing but themselves: a view would be written with all that lies beside
    it (the moments of a population's members are views)."""
    if isinstance(value, Tensor):
        return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value
    if isinstance(value, dict):
        return {key: _of_its_own(item) for key, item in value.items()}
    return [_of_its_own(item) for item in value] if isinstance(value, list) else value


def _held(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return [value for state in optimiser.state.values() for value in state.values() if isinstance(value, Tensor)]
