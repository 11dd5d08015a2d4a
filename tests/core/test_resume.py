"""A training that is interrupted anywhere goes on to the same trajectory, to the last bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from src.core.checkpoints import FileCheckpoint, pack, unpack
from src.core.errors import ArtefactError, OutOfMemory, StopTraining
from src.core.training import NO_CHECKPOINT, FitResult, LoopSettings, fit

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
    folder: Path | None, die_in_report: int = 0, scores: tuple[float, ...] = (), patience: int = EPOCHS
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
        LoopSettings(epochs=EPOCHS, batch_size=8, patience=patience, monitor="score"),
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


@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_a_training_killed_in_any_epochs_report_ends_as_if_it_had_not_been(tmp_path: Path, epoch: int) -> None:
    whole = train(None)
    with pytest.raises(Killed):
        train(tmp_path, die_in_report=epoch)
    assert same(train(tmp_path), whole)


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


class Hungry:
    """Runs out of memory above a number of rows per forward pass."""

    def __init__(self, model: nn.Linear, most: int) -> None:
        self.model, self.most, self.sizes = model, most, list[int]()

    def loss(self, rows: Tensor) -> Tensor:
        """Mean over these rows."""
        if len(rows) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        self.sizes.append(len(rows))
        return ((self.model(torch.ones(len(rows), 1)) - rows.float().unsqueeze(1)) ** 2).mean()


def hungry_fit(most: int, adapt: bool) -> tuple[list[int], Tensor]:
    """One epoch of 16 rows in one batch."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    objective = Hungry(model, most)
    settings = LoopSettings(epochs=1, batch_size=16, monitor="score", adapt_micro_batch=adapt)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    fit(model, objective, optimiser, settings, 16, lambda: {"score": 1.0}, torch.Generator().manual_seed(1))
    return objective.sizes, model.weight.detach()


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_effective_batch() -> None:
    sizes, weight = hungry_fit(most=5, adapt=True)
    assert sizes == [4, 4, 4, 4]  # 16 and 8 did not fit
    torch.testing.assert_close(weight, hungry_fit(most=16, adapt=True)[1])


@pytest.mark.parametrize(("most", "adapt"), [(5, False), (0, True)])
def test_out_of_memory_that_cannot_be_helped_is_an_error(most: int, adapt: bool) -> None:
    with pytest.raises(OutOfMemory, match="lower the batch size"):
        hungry_fit(most, adapt)
