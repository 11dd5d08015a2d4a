"""What training a student takes at least, by hand; and which size is named where no memory holds it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from src.core.errors import ConfigError
from src.core.loop_settings import LoopSettings
from src.core.memory import memory_of
from src.student import least_memory as least
from src.student.architectures.sasrec import SASRec, SASRecSettings
from src.student.base import Architecture
from src.student.least_memory import Task, least_memory, require_fits
from src.student.models import architectures, student_settings

GB = 10**9
SMALL = Task(num_items=10, rows=3, window=5)


def test_a_network_is_counted_as_by_hand() -> None:
    # table 11 x 8, positions 5 x 8, 4 norms of 2 x 8, 3 + 2 maps of 8 x 8 + 8, scorer 10 x 8 + 10
    numbers = 88 + 40 + 64 + 5 * 72 + 90
    # each with a gradient, two moments and the best value; 3 rows of 5 embedded items; 2 x 3 rows of 10 scores
    wanted = 4 * (5 * numbers + 3 * 5 * 8 + 2 * 3 * 10)
    assert least_memory(student_settings("sasrec", width=8), SMALL) == wanted


def test_a_mean_of_the_weights_and_sampled_losses_are_counted_as_by_hand() -> None:
    # table 11 x 4, its biases 10, 2 norms of 8, attention 4 x 20 and 2 heads x 20 distances, 4 -> 16 -> 4, last norm 8
    numbers, tables = 44 + 10 + 16 + 80 + 40 + 80 + 68 + 8, 44 + 10
    embedded, task = 256 * 20 * 4, Task(num_items=10, rows=1000, window=5)
    fields: dict[str, Any] = {"width": 4, "heads": 2}
    whole = 4 * (6 * numbers + embedded + 2 * 256 * 10)
    assert least_memory(student_settings("transformer", loss="ce", **fields), task) == whole
    # gradients of the tables hold a few rows alone, and no row has a score of every item
    sampled = 4 * (6 * numbers - tables + embedded)
    assert least_memory(student_settings("transformer", loss="sampled", **fields), task) == sampled


def test_a_pass_of_fewer_rows_holds_fewer_rows() -> None:
    whole, parts = (
        least_memory(student_settings("gru4rec", width=8, loop=loop), Task(10, 1000, 5))
        for loop in (LoopSettings(batch_size=64), LoopSettings(batch_size=64, micro_batch_size=16))
    )
    assert whole - parts == 4 * 48 * (5 * 8 + 2 * 10)


def test_models_in_closed_form_hold_their_matrices() -> None:
    assert least_memory(student_settings("popularity"), SMALL) == 8 * 10
    for name in ("ease", "linear", "transitions"):
        assert least_memory(student_settings(name), SMALL) == 12 * 10 * 10
    in_directions = student_settings("linear", max_items=5, rank=3)
    assert least_memory(in_directions, SMALL) == 4 * (10 * 3 + 3 * 10)


def test_nothing_is_drawn_and_nothing_allocated() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for name in architectures():
        least_memory(student_settings(name), SMALL)
    assert torch.equal(before, torch.get_rng_state())
    assert least_memory(student_settings("transformer", width=2_000_000), SMALL) > 10**14


@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "caser", "transformer"])
def test_a_size_beyond_what_can_be_counted_is_infinite(name: str) -> None:
    assert least_memory(student_settings(name, width=10**12), SMALL) > 10**15
    assert least_memory(student_settings(name, width=10**30), SMALL) == math.inf


def test_one_that_reads_real_numbers_while_it_is_built_is_counted_by_its_item_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Reading(SASRec):
        def __init__(self, settings: SASRecSettings, num_items: int, window: int) -> None:
            super().__init__(settings, num_items, window)
            self.total = float(self.item_embeddings.weight.detach().sum())

    kind = Architecture("sasrec", SASRecSettings, Reading, closed_form=False)
    monkeypatch.setattr(least, "architecture", lambda name: kind)
    wanted = 4 * (5 * 11 * 8 + 3 * 5 * 8 + 2 * 3 * 10)
    assert least_memory(student_settings("sasrec", width=8), SMALL) == wanted


@pytest.mark.parametrize(
    ("architecture", "fields", "blamed"),
    [
        ("sasrec", {"width": 10**6}, "student.width = 1000000"),
        ("sasrec", {"width": 10**12}, "student.width = 1000000000000"),
        ("transformer", {"feedforward": 10**6}, "student.feedforward = 1000000"),
        ("transformer", {"width": 4096, "heads": 64, "blocks": 100}, "student.width = 4096"),
        ("transformer", {"window": 10_000, "loop": LoopSettings(batch_size=4096)}, "student.window = 10000"),
        ("transformer", {"loop": LoopSettings(batch_size=10**6)}, "student.loop.batch_size = 1000000"),
        ("caser", {"num_filters": 10**8}, "student.num_filters = 100000000"),
        ("tests.student.test_least_memory:nothing", {"width": 10**6}, "student.width = 1000000"),
    ],
)
def test_the_size_that_would_save_most_is_named(architecture: str, fields: dict[str, Any], blamed: str) -> None:
    task = Task(num_items=2000, rows=1_000_000, window=10)
    with pytest.raises(ConfigError) as caught:
        require_fits(student_settings(architecture, **fields), task, memory=4 * GB)
    (problem,) = caught.value.problems
    assert str(problem).startswith(blamed)
    assert "2,000 items, and there are 4.0 GB in all" in problem.rule
    assert problem.next_step == "lower it"


def test_a_window_of_the_dataset_and_a_catalogue_are_named_too() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.window = 9000000"):
        require_fits(student_settings("gru4rec"), Task(2000, 100_000, 9_000_000), 4 * GB)
    with pytest.raises(ConfigError, match="student.architecture = 'ease'.*use another one, or a smaller catalogue"):
        require_fits(student_settings("ease"), Task(20_000, 100_000, 10), 4 * GB)


def test_what_fits_to_the_byte_is_trained() -> None:
    settings = student_settings("sasrec", width=8)
    need = least_memory(settings, SMALL)
    require_fits(settings, SMALL, need)
    with pytest.raises(ConfigError, match="teacher.encoder.architecture"):
        require_fits(settings, SMALL, need - 1, "teacher.encoder")


def test_the_machine_tells_its_memory() -> None:
    assert 10**8 < memory_of(torch.device("cpu")) < 10**15
