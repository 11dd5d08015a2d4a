"""YAML within bounds: what is read, and what is refused before it costs anything."""

from __future__ import annotations

import pytest

from src.core.documents import MOST_CHARACTERS, load_yaml
from src.core.errors import ConfigError

#: nine levels of nine: 9⁹ values from nine lines
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1e-4\nb: [1, true, null, text]\n", {"a": 0.0001, "b": [1, True, None, "text"]}),
        ("a: &one {x: 1}\nb: *one\n", {"a": {"x": 1}, "b": {"x": 1}}),
        ("a: &one {x: 1, y: 2}\nb: {<<: *one, y: 3}\n", {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}),
        ("", None),
    ],
)
def test_plain_values_are_read(text: str, value: object) -> None:
    assert load_yaml(text, "space.yaml") == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "its aliases stand for more than 100,000 values"),
        ("a: &a {<<: [*b, *b]}\n", "undefined alias"),
        ("a: &a [1, *a]\n", "an alias names what it stands in"),
        ("a: &a {b: {c: *a}}\n", "an alias names what it stands in"),
        ("&a ? *a\n: 1\n", "YAML"),
        ("[" * 5_000, "is nested more than 40 levels deep"),
        ("- " * 5_000 + "1", "is nested more than 40 levels deep"),
        ("a: 1\na: 2\n", "'a' is used twice"),
        ("1: a\n", "key 1 must be text"),
        ("2024-01-01: a\n", "must be text"),
        ("a: 2024-13-45\n", "is not valid YAML"),
        (f"a: {'9' * 5_000}\n", "is not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", "is not valid YAML"),
        ("a: '\x00'\n", "is not valid YAML"),
        ("a" * (MOST_CHARACTERS + 1), "must not be longer than 1,048,576 characters"),
    ],
)
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_yaml(text, "space.yaml")
    assert said in str(caught.value)
    assert str(caught.value).startswith("space.yaml = ")
    assert len(str(caught.value)) < 1_000
