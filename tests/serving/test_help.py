"""`--help` of the commands that use a student, and values with the name of a group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from src.cli.entry import Entry
from src.cli.help import rows
from src.config.base_configs import description
from src.config.composition import groups
from src.config.reading import read_config, read_settings
from src.core.logging import console
from src.core.paths import REPOSITORY
from src.exp import describe, export, recommend, serve
from src.serving.recommend import RecommendSettings


@pytest.mark.parametrize("entry", [export.ENTRY, recommend.ENTRY, serve.ENTRY], ids=lambda entry: entry.command)
def test_help_lists_every_key(entry: Entry[Any], capfd: pytest.CaptureFixture[str]) -> None:
    assert entry.execute(["--help"]) == 0
    words = set(capfd.readouterr().out.split())
    keys = {
        f"{key}," for key, _, _ in rows(description(entry.config_name)["settings"], read_config(entry.config_name, []))
    }
    assert keys <= {f"{word.rstrip(',')}," for word in words}


@pytest.mark.parametrize(
    "entry", [describe.ENTRY, export.ENTRY, recommend.ENTRY, serve.ENTRY], ids=lambda entry: entry.command
)
def test_help_fits_one_screen_and_says_what_there_is(
    entry: Entry[Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_width", 100)
    assert entry.execute(["--help"]) == 0
    shown = capfd.readouterr().out
    assert len(shown.splitlines()) <= 40
    assert len(entry.examples) == 5
    assert ("./cmd/" in shown) == (REPOSITORY / "cmd" / f"{entry.command}.sh").exists()
    assert ("params=FILE" in shown) == bool(groups(entry.config_name))


def test_a_student_is_a_folder_here_and_no_group() -> None:
    settings, _ = read_settings("use/recommend", ["student=result/result_A", "columns.user=who"], RecommendSettings)
    assert settings.student == Path.cwd() / "result/result_A"
    assert settings.columns.user == "who"
    assert groups("use/recommend") == {}
    assert "student" in groups("tune")
