"""One name, one meaning: a reader who has met a public class knows it wherever its name stands."""

from __future__ import annotations

import ast
from collections import defaultdict

from src.core.paths import REPOSITORY

SRC = REPOSITORY / "src"


def test_a_public_class_shares_its_name_with_no_other() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(SRC.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{path.relative_to(SRC)}:{node.lineno}")
    assert len(places) > 100
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
