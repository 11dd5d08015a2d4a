"""Writes `docs/reference/configuration.md` from the settings' own fields: ``python -m tests.docs.configuration``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from src.core.paths import REPOSITORY
from src.data.settings import DatasetSettings
from src.distill.settings import ActiveSettings, DistillSettings
from src.pipeline.settings import RuntimeSettings
from src.serving.export import ExportStudentSettings
from src.serving.recommend import RecommendSettings
from src.serving.serve import ServeSettings
from src.student.baselines import BaselineSettings
from src.student.models import settings_types
from src.student.settings import EvaluationSettings
from src.teacher.settings import TeacherSettings
from src.tuning.settings import RaySettings, TuningSettings

PAGE = REPOSITORY / "docs" / "reference" / "configuration.md"

#: a heading, what its keys begin with, and the class that declares them
SECTIONS: list[tuple[str, str, type]] = [
    ("Data", "dataset.", DatasetSettings),
    *((f"Student: {name}", "student.", kind) for name, kind in settings_types().items() if name != "own"),
    ("Teacher", "teacher.", TeacherSettings),
    ("Distillation", "distill.", DistillSettings),
    ("Which rows are taught", "active.", ActiveSettings),
    ("Evaluation", "evaluation.", EvaluationSettings),
    ("Models in closed form", "baselines.", BaselineSettings),
    ("Run", "runtime.", RuntimeSettings),
    ("Search", "tuning.", TuningSettings),
    ("Ray", "ray.", RaySettings),
    ("Command export", "", ExportStudentSettings),
    ("Command recommend", "", RecommendSettings),
    ("Command serve", "", ServeSettings),
]
_HEAD = """\
# Configuration

Every key with its default, what it may be, and what it means: written from the settings' own fields by
`python -m tests.docs.configuration`, and a test keeps it so. `--help GROUP` shows the same with the values of a command
line at hand; presets in `conf/` change some defaults.
"""
_BOUNDS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}"}


def page() -> str:
    """The whole page."""
    return _HEAD + "".join(_section(*section) for section in SECTIONS)


def _section(heading: str, prefix: str, settings: type) -> str:
    about = " ".join(str(settings.__doc__).strip().split("\n\n")[0].split())
    lines = [f"| `{key}` | {default} | {allowed} | {note} |" for key, default, allowed, note in rows(prefix, settings)]
    table = "\n".join(["| key | default | may be | meaning |", "|---|---|---|---|", *lines])
    return f"\n## {heading}\n\n{_plain(about)}\n\n{table}\n"


def rows(prefix: str, settings: type, values: Any = None) -> Iterator[tuple[str, str, str, str]]:
    """Key, default, what it may be, and meaning of every field, those of settings within settings included."""
    hints = get_type_hints(settings, include_extras=True)
    for field in fields(settings):
        value = getattr(values, field.name) if values is not None else _default(field)
        kind, told = _split(hints[field.name])
        inner = next((part for part in (kind, *get_args(kind)) if isinstance(part, type) and is_dataclass(part)), None)
        if inner is not None and is_dataclass(value):
            yield from rows(f"{prefix}{field.name}.", type(value), value)
        else:
            note = told.description or "" if told else ""
            yield f"{prefix}{field.name}", _value(value), _allowed(kind, told), _plain(note)


def _default(field: Any) -> Any:
    value = field.default if field.default_factory is MISSING else field.default_factory()
    return None if value is MISSING else value


def _split(hint: Any) -> tuple[Any, FieldInfo | None]:
    """A field's type, and what its annotation says."""
    metadata = getattr(hint, "__metadata__", ())
    told = next((part for part in metadata if isinstance(part, FieldInfo)), None)
    return (hint.__origin__ if metadata else hint), told


def _value(value: Any) -> str:
    held = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    text = json.dumps(str(held) if isinstance(held, Path) else held, ensure_ascii=False)
    return f"`{_plain(text.strip(chr(34)) or chr(34) * 2)}`"


def _allowed(kind: Any, told: FieldInfo | None) -> str:
    choices = [choice for part in (kind, *get_args(kind)) if get_origin(part) is Literal for choice in get_args(part)]
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    metadata = told.metadata if told else []
    bounds = [
        text.format(getattr(part, name))
        for part in metadata
        for name, text in _BOUNDS.items()
        if getattr(part, name, None) is not None
    ]
    names = {bool: "true, false", int: "whole number", float: "number", str: "text", Path: "path"}
    parts = [part for part in (get_args(kind) or (kind,)) if part is not type(None)]
    words = [names[part] for part in parts if isinstance(part, type) and part in names][:1]
    return ", ".join([*words, *bounds])


def _plain(text: str) -> str:
    """Text that a table's cell can hold; what stands between double backticks in a docstring is code."""
    return re.sub(r"``", "`", text.replace("|", "\\|").replace("<", "&lt;"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
