"""Training at all positions: the same representations, targets and losses, in fewer passes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from src.core.errors import ConfigError
from src.core.loop_settings import LoopSettings
from src.data.id_map import IdMap
from src.data.interactions import Interactions
from src.data.sequences import build_examples
from src.data.tensor_examples import TensorExamples
from src.distill.data_bridge import TeachingRows
from src.distill.settings import ActiveSettings, DistillSettings
from src.distill.trainer_distill import train_distilled
from src.student.datamodule import StudentData
from src.student.models import build_student
from src.student.settings import EvaluationSettings
from src.student.shared_passes import SharedPasses, represent_rows, require_all_positions, shared_passes_for
from src.student.trainer_baseline import train_student
from tests.fixtures import cycle_examples, student_of

V, WINDOW = 11, 4


def train_of(users: int = 3, each: int = 9) -> TensorExamples:
    """Users take turns, so that neighbouring rows belong to different ones."""
    draw = np.random.default_rng(0)
    owners = np.tile(np.arange(users), each)
    items = draw.integers(V, size=users * each)
    ids = tuple(map(str, range(V)))
    log = Interactions("toy", owners, items, np.arange(len(items), dtype=float), None, IdMap(ids, ids))
    return TensorExamples.of(build_examples(log, WINDOW, 2), "cpu")


def test_runs_hold_each_row_once_and_only_neighbours() -> None:
    train = train_of()
    shared_passes = SharedPasses.of(train, longest=3)
    assert sorted(shared_passes.order.tolist()) == list(range(len(train)))
    # 7 targets a user: runs of 3, 3 and 1
    assert shared_passes.size.tolist() == [3, 3, 1] * 3
    for start, size in zip(shared_passes.start.tolist(), shared_passes.size.tolist(), strict=True):
        run = shared_passes.order[start : start + size]
        assert (train.end[run].diff() == 1).all()
        assert len(set((train.end - train.earlier)[run].tolist())) == 1


@pytest.mark.parametrize("longest", [1, 2, 5, 100])
@pytest.mark.parametrize("rows", ["all", "some"])
def test_one_block_gives_what_the_last_place_alone_gives(longest: int, rows: str) -> None:
    train = train_of()
    student = build_student(student_of("transformer", width=8, window=WINDOW, prior="none"), V, WINDOW)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(torch.randn_like(parameter) / 2)
        student.eval()
        chosen = torch.arange(len(train)) if rows == "all" else torch.tensor([20, 3, 11, 4])
        alone = student.encode(*train.read(chosen, WINDOW))
        together = represent_rows(student, SharedPasses.of(train, longest), train, chosen)
    assert torch.allclose(together, alone, atol=1e-6)


def test_batches_hold_each_row_once_in_whole_runs_but_for_the_cuts() -> None:
    train = train_of()
    shared_passes = SharedPasses.of(train, longest=4)
    draw = shared_passes.batches()
    batches = list(draw(len(train), 6, torch.Generator().manual_seed(1), torch.device("cpu")))
    assert [len(batch) for batch in batches] == [6, 6, 6, 3]
    assert sorted(torch.cat(batches).tolist()) == list(range(len(train)))
    assert torch.cat(batches).tolist() != shared_passes.order.tolist()


def test_rows_of_a_table_share_nothing() -> None:
    assert not SharedPasses.of(TensorExamples.of(cycle_examples(6, 0), "cpu"), longest=5).shares_anything
    assert SharedPasses.of(train_of(), longest=5).shares_anything


def test_a_student_of_the_last_place_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"student\.positions.*student=transformer"):
        require_all_positions(build_student(student_of("gru4rec", width=4), V, WINDOW), "gru4rec")


def train_data() -> StudentData:
    train = train_of(4, 12)
    counts = torch.bincount(train.target, minlength=V)
    return StudentData(train, train, V, WINDOW, torch.ones(V), counts)


@pytest.mark.parametrize("distilled", [False, True])
def test_a_student_learns_from_all_positions_as_from_the_last(distilled: bool) -> None:
    """One block: every loss is the same, but for the order of the rows and of the dropout (which is off here)."""
    data, found = train_data(), []
    loop = LoopSettings(epochs=2, batch_size=len(data.train), monitor="ndcg_5")
    for positions in ("last", "all"):
        settings = student_of(
            "transformer", width=8, window=WINDOW, prior="none", dropout=0.0, positions=positions, loop=loop
        )
        if distilled:
            rows = len(data.train)
            slot = torch.arange(rows)
            lists = torch.stack([(data.train.target + place) % V for place in (*range(3),)], dim=1)
            padded = torch.cat([lists, torch.arange(3).unsqueeze(0)])
            distances = torch.arange(3).float().expand(rows + 1, -1)
            teaching = TeachingRows(slot, padded, distances, torch.zeros(rows + 1, 0), torch.randn(V, 5).sign())
            distill = DistillSettings(lam=0.5, alpha=0.1, ed_weight=0.3, candidate_topk=3)
            torch.manual_seed(0)
            run = train_distilled(
                settings, distill, ActiveSettings(), EvaluationSettings(ks=(5,)), data,
                replace(teaching, item_embedding=torch.ones(V, 5)), 1,
            )  # fmt: skip
            found.append([epoch["train_loss"] for epoch in run.fit.history])
        else:
            alone = train_student(settings, EvaluationSettings(ks=(5,)), data, 1)
            found.append([epoch["train_loss"] for epoch in alone.fit.history])
    assert found[0] == pytest.approx(found[1], abs=1e-5 if not distilled else 0.05)


def test_a_source_without_sequences_says_so(caplog: pytest.LogCaptureFixture) -> None:
    rows = TensorExamples.of(cycle_examples(6, 0), "cpu")
    student = build_student(student_of("transformer", width=4, prior="none"), V, WINDOW)
    settings = student_of("transformer", width=4, prior="none", positions="all")
    caplog.set_level("WARNING", "src.student.shared_passes")
    assert shared_passes_for(settings, student, rows) is None
    assert "no whole user sequences" in caplog.text
