"""A teacher's objective is one object: nothing else asks for it, or for a way of ranking, by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.teacher.objective import objectives
from src.teacher.title_lm.ranking_ways import ranking_ways

ROOT = Path(__file__).parents[2]
#: where an objective is written: there it may say what it likes
OWN = {"item_ce": "src.teacher.item_head", "title_lm": "src.teacher.title_lm"}
NAMES = {*objectives(), *ranking_ways(), *(name for kind in objectives().values() for name in kind.rankings)}


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def compared(node: ast.AST) -> Iterator[str]:
    """The strings that a comparison, a `match` or a subscript of a table of strings decides on."""
    if isinstance(node, ast.Compare):
        for side in (node.left, *node.comparators):
            yield from (part.value for part in ast.walk(side) if isinstance(part, ast.Constant))
    elif isinstance(node, ast.MatchValue):
        yield from (part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant))
    elif isinstance(node, ast.Dict):
        yield from (key.value for key in node.keys if isinstance(key, ast.Constant))


def branches(text: str) -> list[str]:
    """Where a module decides on the name of an objective or of a way of ranking."""
    return [value for node in ast.walk(ast.parse(text)) for value in compared(node) if value in NAMES]


def imported(text: str) -> set[str]:
    """Every module that a module imports, inside of functions, too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


FILES = sorted((ROOT / "src").rglob("*.py"))


def test_every_objective_has_a_place_of_its_own() -> None:
    assert set(OWN) == set(objectives())
    for name, package in OWN.items():
        assert type(objectives()[name]).__module__ == f"{package}.objective"


def test_nothing_branches_on_the_name_of_an_objective_or_of_a_way_of_ranking() -> None:
    assert {"item_ce", "title_lm", "item_head", "constrained", "grounded"} <= NAMES
    found = {
        str(file.relative_to(ROOT)): said
        for file in FILES
        if not module_of(file).startswith(tuple(OWN.values())) and (said := branches(file.read_text(encoding="utf-8")))
    }
    assert found == {}


def test_nothing_imports_an_objective_but_the_objective_itself() -> None:
    found = {}
    for file in FILES:
        others = [package for package in OWN.values() if not module_of(file).startswith(package)]
        names = imported(file.read_text(encoding="utf-8"))
        if reached := sorted(name for name in names if name.startswith(tuple(others))):
            found[str(file.relative_to(ROOT))] = reached
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        'if settings.objective == "title_lm":\n    pass\n',
        'writes = settings.objective in ("title_lm", "mine")\n',
        'match way:\n    case "grounded":\n        pass\n',
        'WAYS = {"constrained": 1}\n',
    ],
)
def test_a_branch_would_be_noticed(text: str) -> None:
    assert branches(text)


def test_an_import_would_be_noticed() -> None:
    assert "src.teacher.title_lm.model" in imported(
        "def f():\n    from src.teacher.title_lm.model import TitleTeacher\n"
    )
