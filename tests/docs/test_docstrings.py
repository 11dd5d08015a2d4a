"""Docstrings where a reader looks for them: what each argument is, and whole sentences.

Found in the source, without importing it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from src.core.paths import REPOSITORY

SRC = REPOSITORY / "src"
#: one or two arguments are explained by the sentence itself
MOST_WITHOUT_A_LIST = 2
#: a docstring that sends the reader to the function whose arguments these are
_ELSEWHERE = re.compile(r"\b[Aa]s `|\b[Ss]ee `")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def trees() -> dict[Path, ast.Module]:
    """Every module of `src`."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SRC.rglob("*.py"))}


@cache
def classes() -> dict[str, list[ast.ClassDef]]:
    """Every class of `src` by its name."""
    found: dict[str, list[ast.ClassDef]] = {}
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(node)
    return found


def public(tree: ast.Module | ast.ClassDef, owner: ast.ClassDef | None = None) -> Iterator[tuple[str, Function]]:
    """The functions and methods whose names, and whose class's, have no underscore, but for what overrides."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for name, function in public(node, node):
                yield f"{node.name}.{name}", function
        elif isinstance(node, Function) and not node.name.startswith("_"):
            if owner is not None and inherited(owner, node.name):
                continue
            yield node.name, node


def inherited(owner: ast.ClassDef, name: str) -> bool:
    """Whether a base class promises the method, and explains it; one from outside of `src` may."""
    for base in owner.bases:
        base = base.value if isinstance(base, ast.Subscript) else base
        called = base.id if isinstance(base, ast.Name) else getattr(base, "attr", "")
        if called in ("Protocol", "Generic", "NamedTuple"):
            continue
        known = classes().get(called)
        if known is None:
            return True
        for one in known:
            own = {node.name for node in one.body if isinstance(node, Function)}
            if one is not owner and (name in own or inherited(one, name)):
                return True
    return False


def unexplained(function: Function) -> bool:
    """Whether it has several arguments, and nothing says what each one is."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
    said = ast.get_docstring(function) or ""
    return len(names) > MOST_WITHOUT_A_LIST and "Args:\n" not in said and not _ELSEWHERE.search(said)


def listed(function: Function) -> list[str]:
    """The names under ``Args:``, in their order."""
    said = ast.get_docstring(function) or ""
    section = said.partition("Args:\n")[2].split("\n\n")[0]
    return [name for line in re.findall(r"^ {4}([\w, ]+):", section, flags=re.MULTILINE) for name in line.split(", ")]


def test_functions_of_several_arguments_say_what_each_one_is() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{function.lineno} {name}"
        for path, tree in trees().items()
        for name, function in public(tree)
        if unexplained(function)
    ]
    assert found == []


def test_a_list_of_arguments_names_those_that_there_are() -> None:
    found = []
    for path, tree in trees().items():
        for name, function in public(tree):
            every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            own = {argument.arg for argument in every}
            own |= {one.arg for one in (function.args.vararg, function.args.kwarg) if one is not None}
            if strange := [one for one in listed(function) if one not in own]:
                found.append(f"{path.relative_to(REPOSITORY)}:{function.lineno} {name}: {strange}")
    assert found == []


def test_a_docstring_is_more_than_a_word() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno} {node.name}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and (said := ast.get_docstring(node)) is not None
        and len(said.split()) < 2
    ]
    assert found == []


def test_the_rule_finds_what_it_should() -> None:
    tree = ast.parse(
        "class Base:\n    def work(self, a, b, c): ...\n"
        "class Own(Base):\n    def work(self, a, b, c): ...\n    def more(self, a, b, c): ...\n"
        "def few(a, b): ...\ndef _own(a, b, c): ...\n"
        'def told(a, b, c):\n    """Add.\n\n    Args:\n        a: one.\n        b, c: others.\n    """\n'
        'def sent(a, b, c):\n    """As `told`."""\n'
        'def untold(a, *, b, c=1):\n    """Add them."""\n'
    )
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            classes().setdefault(node.name, []).append(node)
    try:
        functions = dict(public(tree))
    finally:
        for name in ("Base", "Own"):
            classes()[name].pop()
    assert [name for name, function in functions.items() if unexplained(function)] == [
        "Base.work",
        "Own.more",
        "untold",
    ]
    assert listed(functions["told"]) == ["a", "b", "c"]
