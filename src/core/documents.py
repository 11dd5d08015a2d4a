"""YAML documents that people write or hand on: read within bounds, so that no document can exhaust the machine."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from src.core.errors import ConfigError

#: characters of a document, levels of nesting, and values once every alias is written out: what people write is far
#: below these
MOST_CHARACTERS = 2**20
_DEEPEST = 40
_MOST_VALUES = 100_000
_MERGE = "tag:yaml.org,2002:merge"


class _Bounded(yaml.SafeLoader):
    """Plain values only, and no key twice, which PyYAML would silently resolve to the last one."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node; raises ``yaml.composer.ComposerError`` for one that is nested too deeply."""
        self._depth += 1
        if self._depth > _DEEPEST:
            where = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, f"is nested more than {_DEEPEST} levels deep", where)
        node: yaml.Node | None = super().compose_node(parent, index)  # type: ignore[no-untyped-call]
        self._depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        """The document; raises ``yaml.composer.ComposerError`` where its aliases stand for too much."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping; raises ``yaml.constructor.ConstructorError`` for a key that is no text, or is there twice."""
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


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """How many values a node stands for, written out. Each node is looked at once, however often it is named."""
    known = counted.get(id(node))
    if known == 0:  # a node that is being counted: it holds itself
        raise yaml.composer.ComposerError(None, None, "an alias names what it stands in", node.start_mark)
    if known is not None:
        return known
    counted[id(node)], total = 0, 1
    if isinstance(node, yaml.MappingNode):
        total += sum(_count(part, counted) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_count(part, counted) for part in node.value)
    if total > _MOST_VALUES:
        rule = f"its aliases stand for more than {_MOST_VALUES:,} values"
        raise yaml.composer.ComposerError(None, None, rule, node.start_mark)
    counted[id(node)] = total
    return total


def load_yaml(text: str, where: str) -> Any:
    """The plain value that a YAML text holds.

    Args:
        text: the document.
        where: what an error calls it, for example a setting's name.

    Raises:
        ConfigError: the text is no YAML, or not within bounds: too long, nested too deeply, aliases that stand for too
            much or for themselves; a key that is no text or is there twice; a value that cannot be made.
    """
    if len(text) > MOST_CHARACTERS:
        rule = f"must not be longer than {MOST_CHARACTERS:,} characters"
        raise ConfigError.one(where, f"{len(text):,} characters", rule, "is this the right file?")
    try:
        return yaml.load(text, Loader=_Bounded)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a date or a number that Python cannot hold
        raise ConfigError.one(where, "the document", f"is not valid YAML: {error}", "mend that place") from None
