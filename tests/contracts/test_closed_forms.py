"""The project's own models without gradient descent, under the contract."""

from __future__ import annotations

import pytest

from src.core.errors import ConfigError
from src.student.models import build_closed_form, closed_forms, student_settings
from src.student.settings import StudentSettings
from tests.contracts.closed_form import ClosedFormContract
from tests.fixtures import NUM_ITEMS, WINDOW


class TestClosedForms(ClosedFormContract):
    chosen: StudentSettings

    @pytest.fixture(autouse=True, params=closed_forms())
    def choose(self, request: pytest.FixtureRequest) -> None:
        self.chosen = student_settings(request.param)

    def settings(self) -> StudentSettings:
        return self.chosen


def test_a_network_is_no_closed_form() -> None:
    assert closed_forms() == ["ease", "linear", "popularity", "text_linear", "transitions"]
    with pytest.raises(ConfigError, match="is no model in closed form"):
        build_closed_form(student_settings("gru4rec"), NUM_ITEMS, WINDOW)
