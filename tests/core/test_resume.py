"""A training that is interrupted anywhere goes on to the same trajectory, to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from src.core.checkpoints import Checkpoint, FileCheckpoint, pack, unpack
from src.core.data_utils import grouped_batches, shuffled_batches
from src.core.errors import ArtefactError, OutOfMemory, StopTraining
from src.core.training import NO_CHECKPOINT, Batches, FitResult, LoopSettings, fit

EPOCHS = 6


class Noisy:
    """A regression whose loss draws from a stream of its own, besides dropout's."""

    def __init__(self, model: nn.Module, stream: torch.Generator) -> None:
        self.model, self.stream = model, stream
        self.inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(5))

    def loss(self, rows: Tensor) -> Tensor:
        """Mean over these rows."""
        noise = torch.randn(len(rows), generator=self.stream)
        return ((self.model(self.inputs[rows]).squeeze(1) - self.inputs[rows].sum(1) - 0.1 * noise) ** 2).mean()


class Killed(Exception):
    """Stands for SIGKILL."""


def train(
    folder: Path | None,
    die_in_report: int = 0,
    scores: tuple[float, ...] = (),
    patience: int = EPOCHS,
    ema: float = 0.0,
) -> tuple[FitResult, nn.Module]:
    """A fit with dropout, Adam, a schedule and an extra stream; dies in the report of an epoch when asked to."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 1))
    stream = torch.Generator().manual_seed(2)
    objective = Noisy(model, stream)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)

    def report(epoch: int, metrics: Mapping[str, float]) -> None:
        reported.append(epoch)
        if epoch == die_in_report:
            raise Killed

    def evaluate() -> dict[str, float]:
        epoch = len(scored)
        scored.append(epoch)
        error = (model(objective.inputs).squeeze(1) - objective.inputs.sum(1)).pow(2).mean()
        return {"score": scores[epoch] if scores else -float(error)}

    reported, scored = list[int](), list[int]()
    result = fit(
        model,
        objective,
        optimiser,
        LoopSettings(epochs=EPOCHS, batch_size=8, patience=patience, monitor="score", ema=ema),
        40,
        evaluate,
        torch.Generator().manual_seed(3),
        report,
        schedule=torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.99),
        checkpoint=NO_CHECKPOINT if folder is None else FileCheckpoint(folder / "checkpoint.pt", "identity"),
        streams=(stream,),
    )
    return result, model


def same(a: tuple[FitResult, nn.Module], b: tuple[FitResult, nn.Module]) -> bool:
    """Whether two trainings agree to the last bit (seconds aside)."""
    keys = ("best_epoch", "best_metrics", "history", "epochs", "steps", "rows_trained")
    weights = zip(a[1].state_dict().values(), b[1].state_dict().values(), strict=True)
    return all(getattr(a[0], key) == getattr(b[0], key) for key in keys) and all(torch.equal(x, y) for x, y in weights)


with_and_without_a_mean = pytest.mark.parametrize("ema", [0.0, 0.9])


@with_and_without_a_mean
@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_a_training_killed_in_any_epochs_report_ends_as_if_it_had_not_been(
    tmp_path: Path, epoch: int, ema: float
) -> None:
    whole = train(None, ema=ema)
    with pytest.raises(Killed):
        train(tmp_path, die_in_report=epoch, ema=ema)
    assert same(train(tmp_path, ema=ema), whole)


def test_killed_again_while_resuming(tmp_path: Path) -> None:
    whole = train(None)
    for epoch in (2, 2, 3, 1, 5):
        with pytest.raises(Killed):
            train(tmp_path, die_in_report=epoch)
    assert same(train(tmp_path), whole)


def test_every_epoch_is_reported_again_on_resume_and_none_is_trained_again(tmp_path: Path) -> None:
    train(tmp_path)
    seen: list[tuple[int, float]] = []
    torch.manual_seed(99)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Linear(8, 1))
    optimiser = torch.optim.Adam(model.parameters())

    def never() -> dict[str, float]:
        raise AssertionError("nothing is left to train")

    result = fit(
        model,
        Noisy(model, torch.Generator()),
        optimiser,
        LoopSettings(epochs=EPOCHS, batch_size=8, patience=EPOCHS, monitor="score"),
        40,
        never,
        torch.Generator(),
        lambda epoch, metrics: seen.append((epoch, metrics["score"])),
        schedule=torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.99),
        checkpoint=FileCheckpoint(tmp_path / "checkpoint.pt", "identity"),
        streams=(torch.Generator(),),
    )
    assert [epoch for epoch, _ in seen] == list(range(1, result.epochs + 1))
    assert [score for _, score in seen] == [metrics["score"] for metrics in result.history]


def test_patience_that_ran_out_is_remembered(tmp_path: Path) -> None:
    scores = (0.5, 0.4, 0.3, 0.2, 0.9, 0.9)
    with pytest.raises(Killed):
        train(tmp_path, die_in_report=4, scores=scores, patience=3)
    result, _ = train(tmp_path, patience=3)
    assert (result.epochs, result.best_epoch) == (4, 1)


def test_a_stop_in_the_report_keeps_the_state(tmp_path: Path) -> None:
    def stop(epoch: int, metrics: Mapping[str, float]) -> None:
        raise StopTraining

    model = nn.Linear(3, 1)
    checkpoint = FileCheckpoint(tmp_path / "c.pt", "x")
    settings = LoopSettings(epochs=3, batch_size=8, monitor="score")
    result = fit(
        model,
        Noisy(model, torch.Generator()),
        torch.optim.SGD(model.parameters(), lr=0.1),
        settings,
        40,
        lambda: {"score": 1.0},
        torch.Generator(),
        stop,
        checkpoint=checkpoint,
    )
    assert (result.stopped, result.epochs) == (True, 1)
    saved = checkpoint.load()
    assert saved is not None
    assert saved["progress"]["epoch"] == 1


def test_a_checkpoint_of_another_training_is_refused() -> None:
    content = pack({"epoch": 1}, "one")
    assert unpack(content, "one", "file") == {"epoch": 1}
    with pytest.raises(ArtefactError, match="another model, data or configuration"):
        unpack(content, "two", "file")


@pytest.mark.parametrize("content", [b"", b"nonsense", pack({"epoch": 1}, "one")[:-40], pack({"epoch": 1}, "one")[:20]])
def test_a_damaged_checkpoint_is_told(content: bytes) -> None:
    with pytest.raises(ArtefactError, match="is damaged"):
        unpack(content, "one", "trials/3/checkpoint.pt")


# -------------------------------------------------------------------------------------------------- within an epoch


class Timed(Noisy):
    """A regression that takes a minute a step, counts its steps, and is killed at the beginning of one of them."""

    def __init__(self, model: nn.Module, stream: torch.Generator, die_in_step: int) -> None:
        super().__init__(model, stream)
        self.now, self.steps, self.die_in_step = 0.0, 0, die_in_step

    def loss(self, rows: Tensor) -> Tensor:
        """Mean over these rows."""
        self.steps += 1
        if self.steps == self.die_in_step:
            raise Killed
        self.now += 60
        return super().loss(rows)


class Kept:
    """A checkpoint in memory that remembers after how many steps it was saved."""

    def __init__(self) -> None:
        self.content, self.saved = b"", list[int]()

    def load(self) -> Mapping[str, Any] | None:
        """As a file's."""
        return unpack(self.content, "identity", "memory") if self.content else None

    def save(self, state: Mapping[str, Any]) -> None:
        """As a file's."""
        self.saved.append(state["progress"]["steps"])
        self.content = pack(state, "identity")


class Hours(NamedTuple):
    """A training of epochs that take five minutes each, how it went, and what was asked of it."""

    result: FitResult
    module: nn.Module
    steps: int
    told: int


GROUPED = partial(grouped_batches, cost=torch.arange(40) % 7, window=2)
both_orders = pytest.mark.parametrize("batches", [shuffled_batches, GROUPED], ids=["shuffled", "grouped"])


def train_for_hours(
    checkpoint: Checkpoint = NO_CHECKPOINT,
    die_in_step: int = 0,
    die_in_evaluation: int = 0,
    minutes: float = 2.0,
    batches: Batches = shuffled_batches,
    ema: float = 0.0,
) -> Hours:
    """Three epochs of five steps, a minute each; batch norm, dropout, Adam, a schedule and an extra stream."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
    stream = torch.Generator().manual_seed(2)
    objective, optimiser = Timed(model, stream, die_in_step), torch.optim.Adam(model.parameters(), lr=0.05)
    evaluations, told = list[int](), list[int]()

    def evaluate() -> dict[str, float]:
        evaluations.append(1)
        if len(evaluations) == die_in_evaluation:
            raise Killed
        return {"score": -float((model(objective.inputs).squeeze(1) - objective.inputs.sum(1)).pow(2).mean())}

    result = fit(
        model,
        objective,
        optimiser,
        LoopSettings(epochs=3, batch_size=8, patience=9, monitor="score", checkpoint_minutes=minutes, ema=ema),
        40,
        evaluate,
        torch.Generator().manual_seed(3),
        on_step=lambda: told.append(1),
        schedule=torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.99),
        checkpoint=checkpoint,
        streams=(stream,),
        batches=batches,
        clock=lambda: objective.now,
    )
    return Hours(result, model, objective.steps, len(told))


@with_and_without_a_mean
@both_orders
@pytest.mark.parametrize("step", range(3, 16))
def test_a_training_killed_in_any_step_loses_two_minutes_and_no_bit(step: int, batches: Batches, ema: float) -> None:
    whole, checkpoint = train_for_hours(batches=batches, ema=ema), Kept()
    with pytest.raises(Killed):
        train_for_hours(checkpoint, die_in_step=step, batches=batches, ema=ema)
    again = train_for_hours(checkpoint, batches=batches, ema=ema)
    assert same((again.result, again.module), (whole.result, whole.module))
    # killed in a step, at most the two before it are made again
    assert 15 - again.steps in (step - 1, step - 2)
    assert again.told == whole.told == 15


def test_a_training_killed_again_and_again_in_one_epoch_ends_as_if_it_had_not_been() -> None:
    whole, checkpoint = train_for_hours(), Kept()
    for step in (4, 3, 2, 4, 4):  # counted from where it went on
        with pytest.raises(Killed):
            train_for_hours(checkpoint, die_in_step=step)
    again = train_for_hours(checkpoint)
    assert same((again.result, again.module), (whole.result, whole.module))


def test_a_training_says_where_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = Kept()
    with pytest.raises(Killed), caplog.at_level("INFO", logger="src.core.training"):
        train_for_hours(checkpoint, die_in_step=9)
    assert "going on" not in caplog.text
    with caplog.at_level("INFO", logger="src.core.training"):
        train_for_hours(checkpoint)
    # five steps an epoch, saved every other one and after each epoch: step 9 was never made, 5 + 2 were saved
    assert "going on where it was saved: epochs done: 1, steps of the next one: 2" in caplog.text


@with_and_without_a_mean
def test_a_crash_in_the_evaluation_does_not_lose_the_epoch(ema: float) -> None:
    whole, checkpoint = train_for_hours(ema=ema), Kept()
    with pytest.raises(Killed):
        train_for_hours(checkpoint, die_in_evaluation=2, ema=ema)
    again = train_for_hours(checkpoint, ema=ema)
    assert again.steps == 5  # the third epoch's
    assert same((again.result, again.module), (whole.result, whole.module))


@pytest.mark.parametrize(
    ("minutes", "saved"),
    [
        (2, [2, 4, 5, 5, 7, 9, 10, 10, 12, 14, 15, 15]),  # the last of an epoch before and after its evaluation
        (5, [5, 5, 10, 10, 15, 15]),  # what the last step saved is not saved again
        (5.5, [5, 10, 15]),
        (0, [5, 10, 15]),
    ],
)
def test_an_epoch_shorter_than_the_interval_is_saved_once(minutes: float, saved: list[int]) -> None:
    checkpoint = Kept()
    assert train_for_hours(checkpoint, minutes=minutes).result.seconds == 15 * 60
    assert checkpoint.saved == saved


# ---------------------------------------------------------------------------------------------------- out of memory


class Hungry:
    """Runs out of memory above a number of rows per forward pass, when the pass has left its traces."""

    def __init__(self, model: nn.Module, most: Callable[[], int]) -> None:
        self.model, self.most, self.asked, self.sizes = model, most, list[int](), list[int]()
        self.error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    def loss(self, rows: Tensor) -> Tensor:
        """Mean over these rows."""
        self.asked.append(len(rows))
        inputs = torch.stack([rows.float(), torch.ones(len(rows))], dim=1)
        loss = ((self.model(inputs) - rows.float().unsqueeze(1)) ** 2).mean()
        if len(rows) > self.most():
            raise self.error
        self.sizes.append(len(rows))
        return loss


def hungry_fit(
    most: Callable[[], int],
    adapt: bool = True,
    rows: int = 16,
    model: nn.Module | None = None,
    micro: int = 0,
    error: Exception | None = None,
) -> tuple[Hungry, nn.Module]:
    """One epoch in batches of 16."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1) if model is None else model
    objective = Hungry(model, most)
    objective.error = error or objective.error
    settings = LoopSettings(epochs=1, batch_size=16, micro_batch_size=micro, monitor="score", adapt_micro_batch=adapt)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.001)
    fit(model, objective, optimiser, settings, rows, lambda: {"score": 1.0}, torch.Generator().manual_seed(1))
    return objective, model


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_effective_batch() -> None:
    objective, model = hungry_fit(lambda: 5)
    assert objective.sizes == [4, 4, 4, 4]  # 16 and 8 did not fit
    torch.testing.assert_close(model.state_dict(), hungry_fit(lambda: 16)[1].state_dict())


def test_memory_that_a_library_below_torch_lacks_halves_the_micro_batch_too() -> None:
    error = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    assert hungry_fit(lambda: 5, error=error)[0].sizes == [4, 4, 4, 4]
    with pytest.raises(OutOfMemory, match=r"CUBLAS_STATUS_ALLOC_FAILED.*set loop.adapt_micro_batch"):
        hungry_fit(lambda: 5, adapt=False, error=error)


@pytest.mark.parametrize("adapt", [False, True])
def test_another_error_of_the_device_is_not_taken_for_it(adapt: bool) -> None:
    with pytest.raises(torch.AcceleratorError, match="device-side assert"):
        hungry_fit(lambda: 5, adapt, error=torch.AcceleratorError("CUDA error: device-side assert triggered"))


def test_what_is_learned_depends_on_the_final_micro_batch_alone() -> None:
    def normalised() -> nn.Module:
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 1))

    found = hungry_fit(lambda: 5, rows=40, model=normalised())[1].state_dict()
    wanted = hungry_fit(lambda: 99, rows=40, model=normalised(), micro=4)[1].state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert int(found["1.num_batches_tracked"]) == 40 / 4


def test_tables_are_not_copied_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
    model.register_buffer("tokens", torch.zeros(1000), persistent=False)
    copied, clone = list[int](), Tensor.clone

    def counted(tensor: Tensor, **how: Any) -> Tensor:
        copied.append(tensor.numel())
        return clone(tensor, **how)

    monkeypatch.setattr(Tensor, "clone", counted)
    hungry_fit(lambda: 99, rows=32, model=model)
    # running mean, running variance and the count of each of two steps, and all of the best state once
    assert 1000 not in copied
    assert copied.count(1) >= 2


def test_a_last_batch_smaller_than_the_micro_batch_is_halved_itself() -> None:
    steps = list[int]()

    def most() -> int:
        steps.append(1)
        return 16 if len(steps) == 1 else 2

    objective, _ = hungry_fit(most, rows=20, micro=16)
    assert objective.asked == [16, 4, 2, 2]


@pytest.mark.parametrize(
    ("most", "adapt", "said"), [(5, False, "set loop.adapt_micro_batch"), (0, True, "one row per forward pass")]
)
def test_out_of_memory_that_cannot_be_helped_is_an_error(most: int, adapt: bool, said: str) -> None:
    with pytest.raises(OutOfMemory, match=said):
        hungry_fit(lambda: most, adapt)


def test_an_optimisers_step_is_never_made_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model, steps = nn.Linear(2, 1), list[int]()
    objective, optimiser = Hungry(model, lambda: 99), torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        steps.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(optimiser, "step", step)
    settings = LoopSettings(epochs=1, batch_size=16, monitor="score", adapt_micro_batch=True)
    with pytest.raises(OutOfMemory, match=r"optimiser's step .*lower loop.micro_batch_size"):
        fit(model, objective, optimiser, settings, 16, lambda: {"score": 1.0}, torch.Generator())
    assert (len(steps), objective.sizes) == (1, [16])


def test_out_of_memory_in_the_evaluation_says_which_batch_size_to_lower() -> None:
    def evaluate() -> dict[str, float]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    model = nn.Linear(2, 1)
    optimiser, settings = torch.optim.SGD(model.parameters(), lr=0.1), LoopSettings(epochs=1, monitor="score")
    with pytest.raises(OutOfMemory, match=r"evaluation of epoch 1 .*teacher.export.batch_size"):
        fit(model, Hungry(model, lambda: 999), optimiser, settings, 16, evaluate, torch.Generator())
