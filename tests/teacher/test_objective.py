"""One object a kind of teacher: it is known by its name, and nothing else asks for that name."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from src.teacher.item_head.objective import ItemCE
from src.teacher.objective import objective_of, objectives
from src.teacher.settings import RankingKind, TeacherSettings
from src.teacher.title_lm.objective import TitleLM
from tests.teacher.builders import SETTINGS
from tests.teacher.title_builders import TITLE_SETTINGS

SOURCE = Path(__file__).parents[2] / "src"


def test_kinds_are_those_that_the_settings_name() -> None:
    named = get_args(get_type_hints(TeacherSettings)["objective"])
    assert set(objectives()) == set(named) == {"item_ce", "title_lm"}
    assert isinstance(objective_of("item_ce"), ItemCE)
    assert isinstance(objective_of("title_lm"), TitleLM)


def test_every_way_of_ranking_belongs_to_one_kind() -> None:
    ways = [way for kind in objectives().values() for way in kind.rankings]
    assert sorted(ways) == sorted(get_args(RankingKind))


@pytest.mark.parametrize("name", ["item_ce", "title_lm"])
def test_its_own_settings_exist_and_its_search_space_is_a_file(name: str) -> None:
    kind = objective_of(name)
    settings = {"item_ce": SETTINGS, "title_lm": TITLE_SETTINGS}[name]
    for path in kind.own_settings:
        value: object = settings
        for part in path.split("."):
            value = getattr(value, part)
    assert (SOURCE.parent / "search_spaces" / f"{kind.search_space}.yaml").is_file()
    assert settings.ranking == kind.rankings[0]


def test_nothing_compares_the_objectives_name() -> None:
    """A branch on it would be a second place to change when a kind is added."""
    names, found = set(objectives()), []
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            compared = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            if any(isinstance(side, ast.Constant) and side.value in names for side in compared):
                found.append(f"{file.relative_to(SOURCE)}:{node.lineno}")
    assert found == []


def test_settings_are_checked_without_a_library_of_language_models() -> None:
    code = (
        "import sys; from src.teacher.settings import TeacherSettings; "
        "TeacherSettings(); print({'transformers', 'peft'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SOURCE.parent)
    assert said.stdout.strip() == "set()"
