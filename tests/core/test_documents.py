"""Documents from disk: read as they are meant, or refused with the file, the rule and the place."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic.dataclasses import dataclass

from src.core.documents import (
    MOST_CHARACTERS,
    PARTIAL,
    append_json_line,
    load_yaml,
    parse_json,
    parse_yaml,
    read_array,
    read_document,
    read_json_lines,
    read_mapping,
    read_yaml_mapping,
)
from src.core.errors import ArtefactError, ConfigError


@dataclass(frozen=True, config=PARTIAL)
class Sample:
    """What a test reads."""

    count: int
    share: float = 1.0
    names: tuple[str, ...] = ()


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "document"
    path.write_text(text, encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------------------- YAML

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "more than 100,000 values when its aliases are written out"),
        ("a: &a [*a]\n", "*a stands inside itself"),
        ("a: &a [1, *a]\n", "*a stands inside itself"),
        ("a: &a {b: *a}\n", "*a stands inside itself"),
        ("a: &a {b: {c: *a}}\n", "*a stands inside itself"),
        ("a: &a\n  <<: *a\n", "*a stands inside itself"),
        ("&a ? *a\n: 1\n", "not allowed here"),
        ("a: *nowhere\n", "undefined alias"),
        ("a: &a {<<: [*b, *b]}\n", "undefined alias"),
        ("a: 1\nb: 2\na: 3\n", "'a' is used twice"),
        ("a: {b: 1, b: 1}\n", "'b' is used twice"),
        ("1: a\n", "key 1 must be text"),
        ("null: a\n", "key None must be text"),
        ("2024-01-01: a\n", "must be text"),
        ("? [a, b]\n: 1\n? {c: d}\n: 2\n", "must be text"),
        ("a: [1\n", "expected"),
        ("[" * 60 + "]" * 60, "is nested more than 40 levels deep"),
        ("[" * 100_000, "is nested more than 40 levels deep"),
        ("- " * 5_000 + "1", "is nested more than 40 levels deep"),
        ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("a: 2024-99-99\n", "cannot be read"),
        ("a: !!int many\n", "cannot be read"),
        ("a: !!bool perhaps\n", "cannot be read"),
        ("a: !!timestamp soon\n", "cannot be read"),
        (f"a: {'9' * 5000}\n", "cannot be read"),
        ("x" * (MOST_CHARACTERS + 1), "must not be longer than 1,048,576 characters"),
        ("a: \x00\n", "special characters"),
    ],
)
def test_yaml_that_is_refused(text: str, said: str) -> None:
    with pytest.raises(yaml.YAMLError, match=re.escape(said)):
        parse_yaml(text)
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        load_yaml(text, "space.yaml")
    assert str(caught.value).startswith("space.yaml = ")
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("a: 1e-4\nb: 2E5\nc: 1.5e+3\nd: 'e-4'\n", {"a": 1e-4, "b": 2e5, "c": 1.5e3, "d": "e-4"}),
        ("a: &one [1, 2]\nb: *one\nc: *one\n", {"a": [1, 2], "b": [1, 2], "c": [1, 2]}),
        ("base: &b {x: 1, y: 2}\nown:\n  <<: *b\n  x: 3\n", {"base": {"x": 1, "y": 2}, "own": {"x": 3, "y": 2}}),
        ("", None),
        ("- 1\n- [a, null, true]\n", [1, ["a", None, True]]),
    ],
)
def test_yaml_that_is_read(text: str, content: Any) -> None:
    assert parse_yaml(text) == content
    assert load_yaml(text, "space.yaml") == content


def test_a_yaml_mapping_has_names(tmp_path: Path) -> None:
    assert read_yaml_mapping(written(tmp_path, "a: {b: 1}\n")) == {"a": {"b": 1}}
    for text in ("- a\n", "3\n", ""):
        with pytest.raises(ArtefactError, match="must be a mapping"):
            read_yaml_mapping(written(tmp_path, text))
    with pytest.raises(ArtefactError, match="key 1 must be text"):
        read_yaml_mapping(written(tmp_path, "1: 2\n"))


# ------------------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    "text", ["", "{", "NaN", "[Infinity]", '{"a": 1, "a": 1}', "1e999", "[" * 100_000, "9" * 5000, "\x00", "{} {}"]
)
def test_json_that_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_json(text)
    with pytest.raises(ArtefactError, match="is not valid JSON"):
        read_mapping(written(tmp_path, text), Sample)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "should be an object"),
        (None, "should be an object"),
        ({}, "count: Field required"),
        ({"count": None}, "count: Input should be a valid integer"),
        ({"count": "3"}, "count: Input should be a valid integer"),
        ({"count": True}, "count: Input should be a valid integer"),
        ({"count": 1.5}, "count: Input should be a valid integer"),
        ({"count": 1, "share": "much"}, "share: Input should be a valid number"),
        ({"count": 1, "names": [1]}, "names.0: Input should be a valid string"),
    ],
)
def test_a_mapping_of_another_shape(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(ArtefactError, match=said) as caught:
        read_mapping(written(tmp_path, json.dumps(content)), Sample, "make it anew")
    assert (caught.value.problems[0].value, caught.value.problems[0].next_step) == (
        str(tmp_path / "document"),
        "make it anew",
    )


def test_a_mapping_may_hold_more_and_a_whole_number_is_a_float(tmp_path: Path) -> None:
    found = read_mapping(written(tmp_path, '{"count": 3, "share": 1, "names": ["a"], "more": null}'), Sample)
    assert found == Sample(3, 1.0, ("a",))


def test_json_lines_without_the_one_that_was_never_finished(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    assert read_json_lines(path, Sample) == []
    append_json_line(path, {"count": 1})
    append_json_line(path, {"count": 2})
    with path.open("a") as handle:
        handle.write('{"count": 3')
    assert [line.count for line in read_json_lines(path, Sample)] == [1, 2]
    append_json_line(path, {"count": 4})
    assert path.read_text() == '{"count": 1}\n{"count": 2}\n{"count": 4}\n'
    # a last line that is whole but for its end counts, and is kept
    path.write_text('{"count": 5}')
    append_json_line(path, {"count": 6})
    assert [line.count for line in read_json_lines(path, Sample)] == [5, 6]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="document:2.*is not valid JSON"):
        read_json_lines(written(tmp_path, '{"count": 1}\n{"cou\n{"count": 3}\n'), Sample)
    with pytest.raises(ArtefactError, match="document:2.*count: Field required"):
        read_json_lines(written(tmp_path, '{"count": 1}\n{}\n'), Sample)


# ------------------------------------------------------------------------------------------------------------- files


def test_what_is_no_readable_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name, said in (
        ("pipe", "no regular file"),
        (".", "no regular file"),
        ("gone", "is missing"),
        ("bytes", "utf-8"),
    ):
        with pytest.raises(ArtefactError, match=said):
            read_document(tmp_path / name)
    with pytest.raises(ArtefactError, match="cannot be read"):
        read_document(tmp_path / "bytes" / "below")


def test_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    assert read_array(tmp_path / "a.npy", mmap=True).tolist() == [0, 1, 2]
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "several.npz", a=np.arange(3))
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("objects.npy", "several.npz", "empty.npy", "gone.npy"):
        with pytest.raises(ArtefactError, match="array"):
            read_array(tmp_path / name)
