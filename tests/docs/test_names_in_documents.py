"""Files and classes that the documents name are there: a renaming is not finished before they follow."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from src.core.paths import REPOSITORY

#: the worked examples of docs/extend name files and classes of the reader's own
DOCUMENTS = sorted(
    path
    for place in (".", "docs", "docs/guides", "docs/specification")
    for path in (REPOSITORY / place).glob("*.md")
    if path.name != "CHANGELOG.md"  # tells of names that were
)
#: of Ray, Optuna and torch
ELSEWHERE = {"JournalStorage", "OptunaSearch", "RayActorError", "RayActorManager", "SparseAdam"}


@cache
def code() -> tuple[frozenset[str], frozenset[str]]:
    """The paths of all Python files, and every name of two and more words that is defined in them."""
    paths = [path for room in ("src", "tests", "benchmarks") for path in (REPOSITORY / room).rglob("*.py")]
    defined = {
        node.name
        for path in paths
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    return frozenset(path.relative_to(REPOSITORY).as_posix() for path in paths), frozenset(defined)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_what_a_document_names_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    paths, classes = code()
    files = re.findall(r"`((?:\w+/)*\w+\.py)", text)
    assert [name for name in files if not any(path == name or path.endswith(f"/{name}") for path in paths)] == []
    named = {word.rsplit(".", 1)[-1] for word in re.findall(r"`([A-Za-z_.]+)(?:\(\))?`", text)}
    camel = {name for name in named if re.fullmatch(r"_?(?:[A-Z][a-z0-9]+){2,}", name)}
    assert camel - classes - ELSEWHERE == set()


def test_the_rule_finds_something() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    assert len(re.findall(r"`(?:\w+/)*\w+\.py", text)) > 100
