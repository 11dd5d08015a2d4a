"""The table of exported graphs beside PyTorch: what it counts, and that it can be made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import export_parity
from benchmarks.export_parity import Agreement, compared
from src.serving.catalogue import Catalogue
from src.serving.students import ServedStudent
from tests.fixtures import id_map_of


class Scored(ServedStudent):
    """Gives everybody the same scores."""

    def __init__(self, scores: list[float]) -> None:
        self.name, self.catalogue, self.fingerprints = "scored", Catalogue(id_map_of(len(scores))), {}
        self.scores = np.array(scores, np.float32)

    def ranked(self, history: Any, length: Any, k: int, exclude_seen: bool) -> Any:
        """As `ServedStudent.ranked`."""
        scores = np.tile(self.scores, (len(history), 1))
        if exclude_seen:
            np.put_along_axis(scores, history, -np.inf, axis=1)
        items = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return items, np.take_along_axis(scores, items, axis=1)


def test_differences_and_lists_are_counted() -> None:
    history, length = np.array([[0], [2]]), np.array([1, 1])
    true, near = Scored([4.0, 2.0, 1.0]), Scored([4.0, 1.0, 1.5])
    # of all items 0, 1 against 0, 2, twice; without item 0: 1, 2 against 2, 1; without item 2: 0, 1 on both sides
    assert compared(near, true, [(history, length)], k=2) == Agreement(1.0, 4.0, alike=1, lists=4)
    assert compared(true, true, [(history, length)] * 2, k=2) == Agreement(0.0, 4.0, alike=8, lists=8)


@pytest.mark.slow
def test_the_tables_are_made(capsys: pytest.CaptureFixture[str]) -> None:
    small = "--students sasrec --prior popularity --rows 300 --examples 50 --lengths 0 2 --batches 1 3 --k 5"
    export_parity.main(small.split())
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| sasrec")]
    assert [line[1] for line in lines] == ["none", "popularity"] * 2
    for _, _, difference, _, alike in lines[:2]:
        assert float(difference) <= 1e-4
        assert alike == "16 of 16 |"
    for line in lines[2:]:
        assert 0 <= float(line[6]) <= 1
        assert float(line[9].rstrip(" |")) < float(line[8])
