"""Readers of documents: JSON, JSON lines and YAML from disk, checked before anything is done with them.

A folder may come from somebody else, a disk may be full, a process may be killed: whatever stands in a file, these
readers give what was asked for or raise ``ArtefactError`` with the file, the rule and the next step.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Hashable, Mapping
from functools import cache
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from src.core.code_places import require_no_code_beside
from src.core.errors import ArtefactError, ConfigError, ProblemsFound
from src.core.logging import get_logger

if TYPE_CHECKING:
    from numpy.typing import NDArray

_log = get_logger(__name__)

T = TypeVar("T")

#: ``@dataclass(frozen=True, config=PARTIAL)``: what a reader needs of a document that may hold more
PARTIAL = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

#: bounds of a YAML document: its characters, its levels, and its values once every alias is written out; what people
#: and this project write is far below them
MOST_CHARACTERS = 2**20
_DEEPEST, _MOST_VALUES = 40, 100_000
_MERGE = "tag:yaml.org,2002:merge"


# ------------------------------------------------------------------------------------------------------------- text


def read_document(path: Path, next_step: str = "") -> str:
    """The text of a regular file.

    Raises:
        ArtefactError: It is missing, no regular file (a pipe would wait for ever), unreadable, or not UTF-8.
    """
    try:
        if path.exists() and not path.is_file():
            raise ArtefactError.one("file", str(path), "is no regular file", next_step)
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ArtefactError.one("file", str(path), "is missing", next_step) from None
    except (OSError, ValueError) as error:  # not UTF-8, or no possible name of a file
        rule = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise ArtefactError.one("file", str(path), rule, next_step) from None


def conform(content: Any, schema: type[T], source: Path, next_step: str = "") -> T:
    """Plain data as what ``schema`` describes.

    Args:
        content: What JSON or YAML gave.
        schema: A pydantic dataclass (``config=PARTIAL`` lets unknown keys pass), or a type such as ``list[str]``.
        source: The file it came from, for the message.
        next_step: What the user can do about a file that does not conform.

    Raises:
        ArtefactError: A value is missing or has another type, with the place of the first one.
    """
    try:
        # JSON's strict mode: 3 is a float where one is wanted, "3" is no number
        found: T = _adapter(cast(Hashable, schema)).validate_json(json.dumps(content, default=str), strict=True)
        return found
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        rule = f"is damaged or of another version ({where + ': ' if where else ''}{first['msg']})"
        raise ArtefactError.one("file", str(source), rule, next_step) from None
    except ProblemsFound as error:  # a schema's own check: an architecture that does not exist
        rule = f"is damaged or of another version ({error})"
        raise ArtefactError.one("file", str(source), rule, next_step) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtefactError.one("file", str(source), f"is damaged ({error})", next_step) from None


@cache
def _adapter(schema: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, schema))


def read_array(path: Path, next_step: str = "", mmap: bool = False) -> NDArray[Any]:
    """An array that ``numpy.save`` wrote; ``mmap`` leaves it on disk.

    Raises ``ArtefactError`` when it is missing, damaged, or holds Python objects.

    Args:
        path: the file.
        next_step: what the user can do about a damaged one.
        mmap: whether the values stay on disk until they are looked at.
    """
    import numpy as np  # a command line is judged without it

    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    # what NumPy's reading of a damaged header ends in
    except (
        OSError, ValueError, TypeError, EOFError, LookupError, ArithmeticError, MemoryError, SyntaxError, TokenError,
    ) as error:  # fmt: skip
        raise ArtefactError.one("array", str(path), f"cannot be read ({error})", next_step) from None
    if not isinstance(array, np.ndarray):
        raise ArtefactError.one("array", str(path), "holds several arrays", next_step)
    return array


# ------------------------------------------------------------------------------------------------------------- JSON


def parse_json(text: str | bytes) -> Any:
    """Plain data from JSON as this project writes it; raises ``ValueError`` for anything else.

    NaN and infinity, a key that is used twice, numbers beyond a float's range and nesting that exhausts the stack are
    refused.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is used twice")
    return content


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is beyond a number's range")
    return number


def read_json_document(path: Path, next_step: str = "remove it and run again") -> Any:
    """The content of a JSON file; raises ``ArtefactError`` when it is missing or damaged."""
    text = read_document(path, next_step)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ArtefactError.one("file", str(path), f"is not valid JSON ({error})", next_step) from None


def read_mapping(path: Path, schema: type[T], next_step: str = "") -> T:
    """A JSON file as what ``schema`` describes.

    Args:
        path: the file.
        schema: as for `conform`.
        next_step: what the user can do about a file that is missing or does not conform.

    Raises:
        ArtefactError: It is missing or does not conform.
        ConfigError: It names code that lies with it (see `require_no_code_beside`).
    """
    content = read_json_document(path, next_step)
    require_no_code_beside(path, content)
    return conform(content, schema, path, next_step)


def read_json_lines(path: Path, schema: type[T], next_step: str = "") -> list[T]:
    """The lines of a JSON-lines file, none where there is no file.

    A last line without its end is what a kill in the middle of a write leaves: it is left out. Raises ``ArtefactError``
    that names the first other line that does not conform.

    Args:
        path: the file.
        schema: what each line is, as for `conform`.
        next_step: what the user can do about a damaged one.
    """
    if not path.exists():
        return []
    lines = read_document(path, next_step).split("\n")
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content = parse_json(line)
        except ValueError as error:
            if number == len(lines):
                _log.warning("%s: its last line was never finished, and is left out", path)
                break
            raise ArtefactError.one("file", f"{path}:{number}", f"is not valid JSON ({error})", next_step) from None
        found.append(conform(content, schema, Path(f"{path}:{number}"), next_step))
    return found


def append_json_line(path: Path, content: Mapping[str, Any]) -> None:
    """Add a line to a JSON-lines file, on disk when this returns; an unfinished last line is cut off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(dict(content), ensure_ascii=False, allow_nan=False) + "\n"
    with path.open("a+b") as handle:
        handle.seek(0)
        before = handle.read()
        tail = before[before.rfind(b"\n") + 1 :]
        if tail:
            try:
                parse_json(tail)
                line = "\n" + line
            except ValueError:
                handle.truncate(len(before) - len(tail))
        handle.write(line.encode("utf-8"))
        handle.flush()
        os.fsync(handle.fileno())


# ------------------------------------------------------------------------------------------------------------- YAML


class _Bounded(yaml.SafeLoader):
    """Plain values within bounds, keys that are text and unique; `1e-4` is a number."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes, self._depth = 0, 0
        self._sizes: dict[str, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As PyYAML's; raises ``yaml.YAMLError`` for a document that is larger, written out, than the bounds."""
        event = self.peek_event()
        anchor, mark = getattr(event, "anchor", None), event.start_mark
        if isinstance(event, yaml.AliasEvent):
            if anchor in self.anchors and anchor not in self._sizes:
                raise yaml.composer.ComposerError(None, None, f"*{anchor} stands inside itself", mark)
            self._count(self._sizes.get(anchor or "", 0), mark)
            return super().compose_node(parent, index)
        before = self._nodes
        self._count(1, mark)
        self._depth += 1
        if self._depth > _DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"is nested more than {_DEEPEST} levels deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if anchor is not None:
            self._sizes[anchor] = self._nodes - before
        return node

    def _count(self, nodes: int, mark: Any) -> None:
        self._nodes += nodes
        if self._nodes > _MOST_VALUES:
            rule = f"holds more than {_MOST_VALUES:,} values when its aliases are written out"
            raise yaml.composer.ComposerError(None, None, rule, mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping; raises ``yaml.YAMLError`` for a key that is no text, or is used twice (PyYAML's last one wins)."""
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:  # what it brings, the mapping's own keys may replace
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} must be text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is used twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-4 as text; who writes it means a number
_Bounded.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """Plain data from YAML that anybody may have written.

    Raises:
        yaml.YAMLError: It is no YAML, or not within bounds: too long, nested too deeply, aliases that stand for too
            much or inside themselves; a key that is no text or is used twice; a value that cannot be made.
    """
    if len(text) > MOST_CHARACTERS:
        raise yaml.YAMLError(f"must not be longer than {MOST_CHARACTERS:,} characters; it has {len(text):,}")
    try:
        return yaml.load(text, Loader=_Bounded)
    except yaml.YAMLError:
        raise
    # what PyYAML's constructors let through for a value that does not fit its tag
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise yaml.YAMLError(f"holds a value that cannot be read ({type(error).__name__}: {error})") from None


def load_yaml(text: str, where: str) -> Any:
    """As `parse_yaml`, for what a user says.

    Args:
        text: The document.
        where: What an error calls it, for example a setting's name.

    Raises:
        ConfigError: What `parse_yaml` refuses.
    """
    if len(text) > MOST_CHARACTERS:
        rule = f"must not be longer than {MOST_CHARACTERS:,} characters"
        raise ConfigError.one(where, f"{len(text):,} characters", rule, "is this the right file?")
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError.one(where, "the document", f"is not valid YAML: {error}", "mend that place") from None


def read_yaml_mapping(path: Path, next_step: str = "") -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ArtefactError: It is missing, larger than a document of this project, or no mapping from text.
        ConfigError: It names code that lies with it (see `require_no_code_beside`).
    """
    text = read_document(path, next_step)
    try:
        content = parse_yaml(text)
    except yaml.YAMLError as error:
        why = " ".join(str(error).split())
        raise ArtefactError.one("file", str(path), f"is not valid YAML ({why})", next_step) from None
    if not isinstance(content, dict):
        raise ArtefactError.one("file", str(path), "must be a mapping of names to values", next_step)
    require_no_code_beside(path, content)
    return content
