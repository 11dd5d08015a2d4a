"""Small data made by hand, without an adapter: what a test about training or teaching needs, and nothing more."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.core.data_utils import pad_right
from src.data.examples import Examples, SealedExamples, SequenceData, Statistics
from src.data.id_map import IdMap
from src.data.teacher_outputs import TeacherOutputs
from src.student.models import student_settings
from src.student.settings import NetworkSettings

NUM_ITEMS = 12
WINDOW = 5


def id_map_of(num_items: int) -> IdMap:
    """Raw ids ``raw_0``…, titles ``Title 0``…"""
    places = range(num_items)
    return IdMap(tuple(f"raw_{place}" for place in places), tuple(f"Title {place}" for place in places))


def examples_of(histories: list[list[int]], targets: list[int], first_id: int, num_items: int = NUM_ITEMS) -> Examples:
    """Examples from lists; ids count from ``first_id``, users are the rows."""
    rows = len(histories)
    return Examples.of_rows(
        example_id=np.arange(first_id, first_id + rows, dtype=np.int64),
        user=np.arange(rows, dtype=np.int64),
        history=pad_right(histories, WINDOW, num_items),
        length=np.array([min(len(history), WINDOW) for history in histories], dtype=np.int64),
        target=np.array(targets, dtype=np.int64),
        timestamp=np.arange(rows, dtype=np.float64),
    )


def cycle_examples(rows: int, first_id: int, num_items: int = NUM_ITEMS) -> Examples:
    """Histories that walk through the catalogue in steps of one; the target is the next item. Learnable, no noise."""
    lengths = [1 + row % WINDOW for row in range(rows)]
    starts = [(7 * row + first_id) % num_items for row in range(rows)]
    histories = [
        [(start + step) % num_items for step in range(length)] for start, length in zip(starts, lengths, strict=True)
    ]
    return examples_of(histories, [(history[-1] + 1) % num_items for history in histories], first_id, num_items)


def cycle_data(train: int = 40, validation: int = 10, test: int = 10, num_items: int = NUM_ITEMS) -> SequenceData:
    """A dataset of `cycle_examples`; training ids start at 100, so that no id is its row number."""
    splits = [cycle_examples(rows, first, num_items) for rows, first in ((train, 100), (validation, 500), (test, 900))]
    statistics = Statistics(None, num_items, train + validation + test, None, train, validation, test)
    return SequenceData(
        "cycle", id_map_of(num_items), splits[0], splits[1], SealedExamples(splits[2]), statistics, "cycle-fingerprint"
    )


def outputs_for(
    train: Examples, rows: NDArray[np.int64], top_n: int = 4, num_items: int = NUM_ITEMS, width: int = 3
) -> TeacherOutputs:
    """A teacher that knows the answer of these training rows: target first, then the items after it."""
    target = train.target[rows]
    candidates = (target[:, None] + np.arange(top_n)) % num_items
    distances = (np.arange(top_n)[None, :] / 2 + rows[:, None] / 64).astype(np.float32)
    random = np.random.default_rng(0)
    return TeacherOutputs(
        example_id=train.example_id[rows],
        candidates=candidates,
        scores=-distances,
        distances=distances,
        sequence_embedding=random.normal(size=(len(rows), width)).astype(np.float32),
        item_embedding=random.normal(size=(num_items, width)).astype(np.float32),
        manifest={},
    )


def student_of(architecture: str = "sasrec", **fields: Any) -> NetworkSettings:
    """Settings of a network; the published SASRec where no architecture is named."""
    settings = student_settings(architecture, **fields)
    assert isinstance(settings, NetworkSettings)
    return settings
