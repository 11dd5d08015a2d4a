"""The project's own students, under the contract. A new architecture joins `STUDENTS`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from src.distill.terms.item_embeddings import TeacherItemInput
from src.student.models import architectures
from src.student.settings import NetworkSettings
from tests.contracts.student import LOOP, StudentContract
from tests.fixtures import NUM_ITEMS, WINDOW, student_of

_SMALL: dict[str, Any] = {"loop": LOOP, "dropout": 0.3}
_TRANSFORMER: dict[str, Any] = {**_SMALL, "architecture": "transformer", "window": 0, "prior": "none"}

STUDENTS = {
    "sasrec": student_of(architecture="sasrec", width=8, heads=1, **_SMALL),
    "sasrec, four heads": student_of(architecture="sasrec", width=12, heads=4, **_SMALL),
    "sasrec, a head for each unit": student_of(architecture="sasrec", width=5, heads=5, **_SMALL),
    "sasrec, width one": student_of(architecture="sasrec", width=1, heads=1, **_SMALL),
    "gru4rec": student_of(architecture="gru4rec", width=8, **_SMALL),
    "gru4rec, odd width": student_of(architecture="gru4rec", width=7, **_SMALL),
    "caser": student_of(architecture="caser", width=8, filter_sizes=(1, 3, WINDOW), num_filters=3, **_SMALL),
    "caser, one filter": student_of(
        architecture="caser", width=5, filter_sizes=(2,), num_filters=1, loop=LOOP, dropout=0.3
    ),
    "transformer": student_of(width=8, heads=2, **_TRANSFORMER),
    "transformer, two blocks": student_of(width=8, heads=1, blocks=2, feedforward=1, **_TRANSFORMER),
    "transformer, three blocks, free rows": student_of(width=6, heads=3, blocks=3, tied=False, **_TRANSFORMER),
    "transformer, width one": student_of(width=1, heads=1, **_TRANSFORMER),
}


class TestStudents(StudentContract):
    chosen: NetworkSettings

    @pytest.fixture(autouse=True, params=STUDENTS, ids=list(STUDENTS))
    def choose(self, request: pytest.FixtureRequest) -> None:
        self.chosen = STUDENTS[request.param]
        # as published, Caser's filters run over padded places, too
        self.window = self.chosen.architecture == "caser"
        self.trivial = self.chosen.width == 1

    def settings(self) -> NetworkSettings:
        return self.chosen


def test_every_network_is_here() -> None:
    networks = {name for name, kind in architectures().items() if not kind.closed_form}
    assert {settings.architecture for settings in STUDENTS.values()} == networks


@torch.no_grad()
def test_the_teachers_items_are_the_same_projected_by_place_or_by_table() -> None:
    item_input = TeacherItemInput(torch.randn(NUM_ITEMS - 2, 6), NUM_ITEMS, 4, 0.7)
    few, many = torch.tensor([[0, NUM_ITEMS]]), torch.arange(NUM_ITEMS + 1).repeat(3, 1)
    assert torch.allclose(item_input.extra(few)[0], item_input.extra(many)[0, [0, NUM_ITEMS]])
    assert torch.allclose(item_input.extra(few)[0, 1], 0.7 * item_input.projection.bias)
