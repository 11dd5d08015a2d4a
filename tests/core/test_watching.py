"""Who watches a training: what is told, when, and that nothing but time could notice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from src.core.loop_settings import LoopSettings
from src.core.progress_lines import ProgressLines
from src.core.training import fit, silent
from src.core.watching import TrainingStatus, Watchers, training, watched_by, watching


@dataclass
class Heard:
    """Everything that was told."""

    statuses: list[TrainingStatus] = field(default_factory=list)
    epochs: list[tuple[int, TrainingStatus, Mapping[str, float]]] = field(default_factory=list)
    closed: int = 0

    def update(self, status: TrainingStatus) -> None:
        """Kept."""
        self.statuses.append(status)

    def epoch(self, epoch: int, status: TrainingStatus, metrics: Mapping[str, float]) -> None:
        """Kept."""
        self.epochs.append((epoch, status, metrics))

    def close(self) -> None:
        """Counted."""
        self.closed += 1


class Ticks:
    """A clock that goes on by itself, each time that it is asked."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.asked = seconds, 0.0, 0

    def __call__(self) -> float:
        """The time."""
        self.asked += 1
        self.now += self.seconds
        return self.now


class Rows:
    """The loss of a row is its number; and it counts tokens, three a row."""

    def __init__(self, model: nn.Linear) -> None:
        self.model, self.tokens = model, 0

    def loss(self, rows: Tensor) -> Tensor:
        """Their mean, whatever the weights are."""
        self.tokens += 3 * len(rows)
        return rows.float().mean() + 0 * self.model.weight.sum()

    def tokens_seen(self) -> int:
        """So far."""
        return self.tokens


class Memory:
    """A checkpoint; ``after`` so many savings the process dies."""

    def __init__(self, after: int = 0) -> None:
        self.state: Mapping[str, object] | None = None
        self.left = after

    def load(self) -> Mapping[str, object] | None:
        """The last."""
        return self.state

    def save(self, state: Mapping[str, object]) -> None:
        """In place of the one before."""
        self.state = state
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def train(clock: Callable[[], float], epochs: int = 2, memory: Memory | None = None) -> list[float]:
    """Ten rows in batches of four; returns the weights."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    settings = LoopSettings(epochs=epochs, batch_size=4, monitor="score")
    optimiser = torch.optim.SGD(model.parameters(), lr=0.25)
    more = {} if memory is None else {"checkpoint": memory}
    fit(
        model, Rows(model), optimiser, settings, 10, lambda: {"score": 1.0}, torch.Generator().manual_seed(1),
        silent, clock=clock, **more,  # type: ignore[arg-type]
    )  # fmt: skip
    return [float(value) for value in model.parameters()]


def test_each_epoch_is_told_with_its_loss_rate_and_pace() -> None:
    heard = Heard()
    with watching(heard):
        train(Ticks(0.001))
    assert heard.statuses == []  # nothing within epochs that are over in no time
    assert [epoch for epoch, _, _ in heard.epochs] == [1, 2]
    for epoch, status, metrics in heard.epochs:
        assert (status.step, status.steps) == (3 * epoch, 6)  # ceil(10 / 4) steps an epoch
        # the mean of 0..9
        assert status.values["loss"] == pytest.approx(4.5)
        assert status.values["learning_rate"] == 0.25
        # three tokens a row
        assert status.values["tokens_per_second"] == pytest.approx(3 * status.values["rows_per_second"])
        assert metrics["score"] == 1.0
    assert heard.closed == 1


def test_a_long_epoch_is_looked_at_within_and_the_means_add_up() -> None:
    heard = Heard()
    with watching(heard):
        train(Ticks(10.0), epochs=1)
    assert [status.step for status in heard.statuses] == [1, 2, 3]
    rows = [4, 4, 2]
    losses = [status.values["loss"] for status in heard.statuses]
    assert sum(count * loss for count, loss in zip(rows, losses, strict=True)) / 10 == pytest.approx(4.5)
    # its loss was told in parts
    assert "loss" not in heard.epochs[0][1].values
    assert heard.statuses[-1].left == 0


def test_watching_changes_nothing_and_nobody_is_asked_for_the_time_where_nobody_watches() -> None:
    alone, watched = Ticks(10.0), Ticks(10.0)
    weights = train(alone)
    with watching(Heard()):
        assert train(watched) == weights
    bare = Ticks(10.0)
    train(bare)
    assert bare.asked == alone.asked < watched.asked


def test_a_training_that_goes_on_tells_its_epochs_again() -> None:
    memory, heard = Memory(after=1), Heard()
    with watching(Heard()), pytest.raises(KeyboardInterrupt):
        train(Ticks(0.001), 3, memory)
    memory.left = 0
    with watching(heard):
        train(Ticks(0.001), 3, memory)
    assert [(epoch, status.step) for epoch, status, _ in heard.epochs] == [(1, 3), (2, 6), (3, 9)]
    # of an epoch that was trained before, nothing is known but its metrics
    assert heard.epochs[0][1].values == {}
    assert heard.epochs[1][1].values["loss"] == pytest.approx(4.5)


def test_trainings_are_watched_by_their_names() -> None:
    made = dict[str, Heard]()

    def make(name: str) -> Heard:
        return made.setdefault(name, Heard())

    with watched_by(make):
        with training("outer"):
            with training("inner"):
                train(Ticks(0.001), 1)
            train(Ticks(0.001), 2)
        train(Ticks(0.001), 1)  # without a name
    with training("nobody"):
        train(Ticks(0.001), 1)
    assert {name: len(heard.epochs) for name, heard in made.items()} == {"outer": 2, "inner": 1}
    assert {heard.closed for heard in made.values()} == {1}


def test_a_line_comes_every_half_minute() -> None:
    said, now = list[str](), [0.0]
    first, second = Heard(), ProgressLines("teacher", said.append, lambda: now[0])
    both = Watchers((first, second))
    for at, step in ((10.0, 1), (31.0, 2), (45.0, 3), (61.5, 4)):
        now[0] = at
        both.update(TrainingStatus(step, 1000, {"loss": 2.5}, left=600.0))
    both.epoch(1, TrainingStatus(5, 1000, {}), {})
    assert said == [f"teacher: step {step} of 1,000, loss 2.5, about 10 minutes left" for step in (2, 4)]
    assert len(first.statuses) == 4
