"""Where a module lies, found without importing it, and which code a document may name.

A document may come from somebody else, and code beside it then comes from there, too. A folder below one from which
modules are imported is a package to Python, whatever lies in it: so a document in such a folder must not name code in
the same folder. A document in the very folder from which modules are imported may: that folder is the user's choice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from src.core.errors import ConfigError, Problem

_LONGEST = 500  # characters of a module's name
_STEP = (
    "if that code is yours, put its folder on PYTHONPATH and name it from there, or move it out of this file's folder"
)


def module_places(module: str) -> Iterator[Path]:
    """Where a module and the packages around it lie, found without importing any of them."""
    path: Any = None
    parts = [part for part in module.split(".") if part]
    for part in parts:
        # by its last name alone: the path says where, and a whole name would ask the package around it
        spec = PathFinder.find_spec(part, path)
        if spec is None:
            return
        if spec.has_location and spec.origin is not None:
            yield Path(spec.origin).resolve()
        path = list(spec.submodule_search_locations or ())
        yield from (Path(place).resolve() / "__init__.py" for place in path)


def require_no_code_beside(document: Path, content: Any) -> None:
    """Refuse a document that names code which lies with it: whoever gave the document would run code here.

    Args:
        document: the file that was read.
        content: what it holds, as plain data; every text like ``package.module:factory`` is looked at.

    Raises:
        ConfigError: some code that it names lies in its folder, below it, or in another part of the same package.
    """
    problems = []
    for name in sorted(set(_names(content))):
        if folder := _shared_folder(document, name.partition(":")[0]):
            rule = f"names code that came with it ({folder}), which is not run"
            problems.append(Problem(f"file {document}", name, rule, _STEP))
    if problems:
        raise ConfigError(problems)


def _names(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        if 0 < content.find(":") <= _LONGEST:  # any file ending in .py can be imported, whatever its name
            yield content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _names(key)
            yield from _names(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _names(value)


def _shared_folder(document: Path, module: str) -> Path | None:
    """The deepest folder that holds a document and a module; None where it is itself one that modules come from."""
    roots = [_above(place) for place in module_places(module.split(".", 1)[0])]
    for place in module_places(module):
        # a link in the working directory may lead to a document elsewhere
        for folder in (document.absolute().parent, document.resolve().parent):
            shared = Path(os.path.commonpath([folder, place]))
            if any(root in shared.parents for root in roots):
                return shared
    return None


def _above(place: Path) -> Path:
    """The folder from which a module is imported, or a package with its `__init__.py`."""
    return place.parent.parent if place.name == "__init__.py" else place.parent
