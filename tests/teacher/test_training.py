"""Training: it learns, it is repeatable, and it chooses on a sample of validation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from src.core.checkpoints import Checkpoint, FileCheckpoint, snapshot
from src.core.errors import ConfigError, DataError
from src.core.training import NO_CHECKPOINT, LoopSettings, silent
from src.data.examples import sample
from src.data.id_map import IdMap
from src.student.settings import EvaluationSettings
from src.teacher.item_head.training import ItemObjective
from src.teacher.settings import GateSettings, HeadSettings, TeacherSettings, TeacherTrainSettings
from src.teacher.training import TeacherRun, build_optimiser, train_teacher
from tests.fixtures import cycle_data, cycle_examples
from tests.teacher.builders import CPU, SETTINGS, encoder_of, teacher_of

EVALUATION = EvaluationSettings(ks=(1, 5))
TRAIN = TeacherTrainSettings(
    loop=LoopSettings(epochs=6, batch_size=8, patience=6, monitor="ndcg_5"),
    learning_rate=1e-2,
    projector_learning_rate=1e-2,
    head_learning_rate=1e-2,
)


def trained(
    folder: Path, seed: int = 0, report: Any = None, checkpoint: Checkpoint = NO_CHECKPOINT, **changes: Any
) -> TeacherRun:
    """A teacher of walks through the catalogue."""
    settings = replace(SETTINGS, **{"train": TRAIN, "head": HeadSettings(init="random"), **changes})
    told = silent if report is None else report
    return train_teacher(settings, cycle_data(), encoder_of(), str(folder), CPU, seed, EVALUATION, told, checkpoint)


def test_the_teacher_learns(llm: Path) -> None:
    # a random order of the catalogue costs log 12
    losses = [epoch["train_loss"] for epoch in trained(llm, train=replace(TRAIN, loop=_epochs(12))).fit.history]
    assert losses[-1] < 0.7 * math.log(12) < 0.9 * losses[0]


def test_the_summary_tells_how_it_went(llama: Path) -> None:
    seen = list[tuple[int, Mapping[str, float]]]()
    run = trained(llama, report=lambda epoch, metrics: seen.append((epoch, metrics)), train_rows=16, validation_rows=4)
    summary = run.summary()
    assert (summary["different_rows"], summary["validation_rows"]) == (16, 4)
    assert summary["rows_trained"] == 16 * 6
    assert (summary["epochs"], summary["steps"]) == (6, 12)
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert 0 < summary["gate_entropy"] <= 1
    assert sum(summary["gate_weights"]) == pytest.approx(1, abs=1e-3)
    assert summary["validation"]["ndcg_5"] == max(metrics["ndcg_5"] for _, metrics in seen)
    assert summary["parameters"]["head"] == 12 * 16 + 12


def test_equal_seeds_give_equal_teachers(llama: Path) -> None:
    first, again, other = (snapshot(trained(llama, seed).teacher) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_killed_training_goes_on_to_the_same_teacher(llama: Path, tmp_path: Path) -> None:
    class KilledError(Exception):
        """Stands for SIGKILL."""

    def die(epoch: int, metrics: Mapping[str, float]) -> None:
        if epoch == 3:
            raise KilledError

    checkpoint = FileCheckpoint(tmp_path / "teacher.pt", "this teacher")
    with pytest.raises(KilledError):
        trained(llama, report=die, checkpoint=checkpoint)
    whole, resumed = trained(llama), trained(llama, checkpoint=checkpoint)
    assert resumed.fit.history == whole.fit.history
    first, second = snapshot(whole.teacher), snapshot(resumed.teacher)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_micro_batches_change_nothing_but_memory(llama: Path) -> None:
    changes: dict[str, Any] = {"gate": GateSettings(kind="linear")}
    whole = trained(llama, train=replace(TRAIN, loop=_epochs(1)), **changes)
    loop = replace(TRAIN.loop, epochs=1, micro_batch_size=3)
    parts = trained(llama, train=replace(TRAIN, loop=loop), **changes)
    assert parts.fit.history[0]["train_loss"] == pytest.approx(whole.fit.history[0]["train_loss"], rel=1e-4)


@pytest.mark.parametrize("init", ["recommender", "title", "random"])
def test_every_start_of_the_head_is_applied(llm: Path, init: Literal["recommender", "title", "random"]) -> None:
    slow = replace(TRAIN, loop=_epochs(1), learning_rate=1e-12, projector_learning_rate=1e-12, head_learning_rate=1e-12)
    head = trained(llm, head=HeadSettings(init=init, fit_rows=40), train=slow).teacher.head.weight
    untouched = trained(llm, head=HeadSettings(init="random"), train=slow).teacher.head.weight
    assert torch.allclose(head, untouched, atol=1e-6) == (init == "random")


def test_a_recommender_start_ranks_like_the_recommender(llama: Path) -> None:
    slow = replace(TRAIN, loop=_epochs(1), learning_rate=1e-12, projector_learning_rate=1e-12, head_learning_rate=1e-12)
    teacher = trained(llama, head=HeadSettings(init="recommender", fit_rows=40, ridge=1e-3), train=slow).teacher
    shown = cycle_examples(40, 100)
    history, length = torch.from_numpy(shown.history), torch.from_numpy(shown.length)
    with torch.no_grad():
        ours, theirs = teacher(history, length).logits, teacher.encoder(history, length)
    correlation = torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1]
    assert correlation > 0.9


def test_weight_decay_is_for_projector_and_gate_and_the_gate_learns_slower(llama: Path) -> None:
    teacher = teacher_of(llama)
    train = TeacherTrainSettings(
        learning_rate=1e-3, projector_learning_rate=2e-3, head_learning_rate=3e-3, weight_decay=0.1
    )
    groups = build_optimiser(teacher, train).param_groups
    found = [(group["lr"], group["weight_decay"]) for group in groups]
    assert found == [(1e-3, 0.0), (2e-3, 0.1), (pytest.approx(0.3e-3), 0.1), (3e-3, 0.0)]
    assert {id(p) for group in groups for p in group["params"]} == {
        id(p) for p in teacher.parameters() if p.requires_grad
    }


def test_the_validation_sample_is_seeded_and_all_rows_at_zero() -> None:
    examples = cycle_examples(30, 0)
    first, again = (sample(examples, 10, 5, "validation").example_id for _ in range(2))
    assert np.array_equal(first, again)
    assert len(np.unique(first)) == 10
    assert not np.array_equal(first, sample(examples, 10, 6, "validation").example_id)
    assert len(sample(examples, 0, 5, "validation")) == len(sample(examples, 99, 5, "validation")) == 30


def test_the_test_split_is_never_opened(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the test split was opened")

    monkeypatch.setattr("src.data.examples.SealedExamples.open", refuse)
    trained(llama, train=replace(TRAIN, loop=_epochs(1)))


def test_a_monitor_that_is_not_evaluated_is_refused_first(llama: Path) -> None:
    loop = replace(TRAIN.loop, monitor="ndcg_20")
    with pytest.raises(ConfigError, match=r"teacher.train.loop.monitor = 'ndcg_20'"):
        trained(llama, train=replace(TRAIN, loop=loop))


def test_missing_titles_are_refused_before_training(llama: Path) -> None:
    data = cycle_data()
    untitled = replace(data, id_map=IdMap(data.id_map.raw_ids, ("", *data.id_map.titles[1:])))
    with pytest.raises(DataError, match="raw ids raw_0"):
        train_teacher(replace(SETTINGS, train=TRAIN), untitled, encoder_of(), str(llama), CPU, 0, EVALUATION)


def test_a_teacher_can_be_trained_without_a_pretrained_start_in_every_kind_of_gate(llama: Path) -> None:
    for gate in (GateSettings(kind="linear", top_k=2, noise=0.1, dropout=0.1), GateSettings(kind="mlp", hidden=5)):
        settings = TeacherSettings(**{**_fields(SETTINGS), "gate": gate, "train": replace(TRAIN, loop=_epochs(1))})
        run = train_teacher(settings, cycle_data(), encoder_of(), str(llama), CPU, 0, EVALUATION)
        assert run.fit.epochs == 1


def _epochs(epochs: int) -> LoopSettings:
    return replace(TRAIN.loop, epochs=epochs, patience=epochs)


def _fields(settings: TeacherSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}


def batch_costs(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[list[int]]:
    """Prompt tokens of each row of each step of one epoch."""
    seen = list[list[int]]()
    loss = ItemObjective.loss

    def watched(self: ItemObjective, rows: torch.Tensor) -> torch.Tensor:
        seen.append(self.teacher.cost(self.train.history[rows], self.train.length[rows]).tolist())
        return loss(self, rows)

    monkeypatch.setattr(ItemObjective, "loss", watched)
    trained(folder, train=replace(TRAIN, loop=_epochs(1), **changes))
    return seen


def test_batches_grouped_by_length_have_hardly_any_padding(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = batch_costs(llama, monkeypatch)
    monkeypatch.undo()
    grouped = batch_costs(llama, monkeypatch, group_by_length=True)
    rows = [sorted(cost for batch in batches for cost in batch) for batches in (plain, grouped)]
    assert rows[0] == rows[1], "each row once"
    # 40 rows of 5 lengths in 5 batches of 8: sorted, each batch has one length
    assert all(len(set(batch)) == 1 for batch in grouped)
    assert max(rows[0]) in grouped[0]
    assert not all(len(set(batch)) == 1 for batch in plain)


def test_a_killed_training_on_grouped_batches_goes_on_to_the_same_teacher(llama: Path, tmp_path: Path) -> None:
    def die(epoch: int, metrics: Mapping[str, float]) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    train = replace(TRAIN, loop=replace(_epochs(3), batch_size=3), group_by_length=True)
    checkpoint = FileCheckpoint(tmp_path / "teacher.pt", "this teacher")
    with pytest.raises(KeyboardInterrupt):
        trained(llama, report=die, checkpoint=checkpoint, train=train)
    whole, resumed = trained(llama, train=train), trained(llama, checkpoint=checkpoint, train=train)
    assert resumed.fit.history == whole.fit.history
    first, second = snapshot(whole.teacher), snapshot(resumed.teacher)
    assert all(torch.equal(first[name], second[name]) for name in first)
