"""Exports that many tests read, made once: models in closed form, whose graphs are the quickest to make."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.serving.export import ExportStudentSettings, check_export, export_student
from src.serving.students import ServedStudent, open_student
from tests.serving.finished import finished, student


def exported(folder: Path, result: Path, name: str) -> Path:
    """A result's export."""
    settings = ExportStudentSettings(result=result, out=folder, name=name)
    export_student(settings, check_export(settings), folder)
    return folder


@pytest.fixture(scope="session")
def transitions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported student whose answers depend on the history; nothing is known of its data."""
    root = tmp_path_factory.mktemp("transitions")
    return exported(root / "export", finished(root / "result", student("transitions")), "transitions")


@pytest.fixture(scope="session")
def popularity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another student of the same catalogue."""
    root = tmp_path_factory.mktemp("popularity")
    return exported(root / "export", finished(root / "result", student("popularity")), "popularity")


@pytest.fixture(scope="session")
def served(transitions: Path) -> ServedStudent:
    """The first one, opened."""
    return open_student(transitions, threads=1)
