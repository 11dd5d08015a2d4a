"""`--help`: what the command does, its groups, and every key with its default and its note."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from pydantic.fields import FieldInfo
from rich.markup import escape
from rich.table import Table

from src.core.logging import console
from src.exp.door import compose_plain, format_value, groups

_WORDS = ("null", "true", "false", "nan", "inf")  # what Hydra reads as no text


def show_help(command: str, description: str, config_name: str, schema: type) -> None:
    """Print the command's help."""
    content, _ = compose_plain(config_name, [])
    console.print(f"[bold]python -m src.exp.{command}[/bold] \\[group=option ...] \\[key=value ...]\n")
    console.print(escape(description.strip()) + "\n")
    console.print("Groups (choose an option with group=option):")
    for group, options in groups(config_name).items():
        console.print(f"  {group}: {', '.join(options)}")
    console.print("\nparams=FILE starts from the keys of a best_params.yaml; other arguments win.")
    table = Table(title="Keys (key=value)", title_justify="left", box=None, pad_edge=False)
    for heading in ("key", "default", "meaning"):
        table.add_column(heading, overflow="fold")
    for key, default, note in _rows(schema, content):
        table.add_row(key, escape(default), escape(note))
    console.print(table)


def _rows(schema: type, content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    hints = get_type_hints(schema, include_extras=True)
    for field in fields(schema):
        key = f"{prefix}{field.name}"
        value = content.get(field.name, field.default)
        annotation = hints[field.name]
        bare = get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
        if is_dataclass(bare) and isinstance(bare, type):
            yield from _rows(bare, value if isinstance(value, Mapping) else {}, f"{key}.")
        else:
            yield key, _as_written(value), _note(annotation)


def _as_written(value: Any) -> str:
    """A value as the command line takes it: text is quoted only where it would be read as something else."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_as_written(part) for part in value)}]"
    if isinstance(value, str) and re.fullmatch(r"[\w./:-]*[A-Za-z/:][\w./:-]*|\d+(\.\d+){3}", value):
        return value if value.lower() not in _WORDS else format_value(value)
    return format_value(value)


def _note(annotation: Any) -> str:
    for part in getattr(annotation, "__metadata__", ()):
        if isinstance(part, FieldInfo):
            return part.description or ""
    return ""
