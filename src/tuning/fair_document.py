"""`fair.json`: the answer of the fair protocol, written and read, and its table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass as document
from rich.table import Table

from src.core.documents import PARTIAL, conform, read_json_document
from src.core.paths import write_json
from src.core.result_files import FAIR
from src.evaluation.comparison import explain_missing


@document(frozen=True, config=PARTIAL)
class _Arm:
    """An arm's line."""

    arm: str
    test: float
    low: float = 0.0
    high: float = 0.0
    title: str = ""
    values_per_seed: list[float] = Field(default_factory=list)
    seeds: list[int] = Field(default_factory=list)
    trials: int = 0
    epochs: int = 0
    params: dict[str, float | int | bool | str | None] = Field(default_factory=dict)
    #: the best mean first
    finalists: list[dict[str, Any]] = Field(default_factory=list)


@document(frozen=True, config=PARTIAL)
class _Difference:
    """A comparison's line."""

    name: str
    against: str
    difference: float
    low: float
    high: float
    sentence: str


@document(frozen=True, config=PARTIAL)
class _Answer:
    """What a reader needs of the file."""

    metric: str
    arms: list[_Arm] = Field(min_length=1)
    comparisons: list[_Difference] = Field(default_factory=list)
    missing: dict[str, str] = Field(default_factory=dict)


def save_answer(folder: Path, answer: Mapping[str, Any]) -> None:
    """Write `fair.json`."""
    write_json(folder / FAIR, answer)


def load_answer(path: Path) -> dict[str, Any]:
    """What `save_answer` wrote; raises ``ArtefactError`` when it is missing or damaged."""
    content: dict[str, Any] = read_json_document(path)
    conform(content, _Answer, path)
    return content


def arms_table(answer: Mapping[str, Any]) -> Table:
    """The arms for the terminal: means over seeds, and the test value's 95 % interval."""
    whom = f"{answer['users']} test users" if answer["users"] else f"{answer['examples']} test examples"
    table = Table(title=f"the arms on {whom}", title_justify="left")
    for heading in ("arm", "trials", "seeds", "validation", answer["metric"], "95 % interval"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for arm in answer["arms"]:
        counts = (str(arm["trials"]), str(len(arm["seeds"]) or ""))
        interval = f"{arm['low']:.4f} to {arm['high']:.4f}"
        table.add_row(arm["title"], *counts, f"{arm['validation']:.4f}", f"{arm['test']:.4f}", interval)
    for name in answer["missing"]:
        table.add_row(name, *["–"] * 5)
    return explain_missing(table, answer["missing"])
