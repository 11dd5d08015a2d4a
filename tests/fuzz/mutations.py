"""Damage as disks, editors and other people's programs do it, drawn from a seeded stream."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

#: what stands in a value's place
OTHERS: list[Any] = [
    None, [], {}, "", "x", "3", -1, 0, 3, 2**70, 1.5, -0.0, 1e308, True, False, [None], {"a": None}, [[[[]]]], "\x00",
    "../..", "é" * 3,
]  # fmt: skip


def damage_bytes(content: bytes, stream: random.Random) -> bytes:
    """One bit flipped, a part cut out, repeated or zeroed, the end cut off, or strange bytes put in."""
    if not content:
        return b"\x00"
    place = stream.randrange(len(content))
    length = stream.randint(1, max(1, min(64, len(content) - place)))
    match stream.randrange(6):
        case 0:
            return content[:place] + bytes([content[place] ^ (1 << stream.randrange(8))]) + content[place + 1 :]
        case 1:
            return content[:place]
        case 2:
            return content[:place] + content[place + length :]
        case 3:
            return content[:place] + content[place : place + length] + content[place:]
        case 4:
            return content[:place] + bytes(length) + content[place + length :]
        case _:
            return content[:place] + stream.randbytes(length) + content[place:]


def damage_values(content: Any, stream: random.Random) -> Any:
    """A value of another type, a key missing, renamed or added, an element twice; now and then the whole document."""
    if stream.random() < 0.05:
        return stream.choice(OTHERS)
    content = copy.deepcopy(content)
    places = list(_places(content))
    if not places:
        return stream.choice(OTHERS)
    holder, key = stream.choice(places)
    match stream.randrange(4):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[f"{key}_"] = holder.pop(key)
        case 1:
            holder.insert(key, holder[key])
        case _:
            holder[key] = stream.choice(OTHERS)
    return content


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        yield content, key
        yield from _places(content[key])


def damage_json(content: bytes, stream: random.Random) -> bytes:
    """Of a JSON file: its values."""
    return json.dumps(damage_values(json.loads(content), stream), ensure_ascii=False).encode()


def damage_yaml(content: bytes, stream: random.Random) -> bytes:
    """Of a YAML file: its values."""
    return yaml.safe_dump(damage_values(yaml.safe_load(content), stream), allow_unicode=True).encode()


def damage_lines(content: bytes, stream: random.Random) -> bytes:
    """Of a file of JSON lines: the values of one line."""
    lines = content.decode().splitlines()
    row = stream.randrange(len(lines))
    lines[row] = json.dumps(damage_values(json.loads(lines[row]), stream))
    return ("\n".join(lines) + "\n").encode()


STRUCTURED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": damage_json,
    ".jsonl": damage_lines,
    ".journal": damage_lines,
    ".yaml": damage_yaml,
}


def damage(file: Path, stream: random.Random) -> None:
    """Damage a file in place: its bytes, or where it has values these."""
    content, structured = file.read_bytes(), STRUCTURED.get(file.suffix)
    if structured is not None and stream.random() < 0.6:
        file.write_bytes(structured(content, stream))
    else:
        file.write_bytes(damage_bytes(content, stream))
