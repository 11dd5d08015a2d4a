"""A student's metrics as its cards show them; apart from the graph, which a search never makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from src.core.errors import ArtefactError
from src.core.result_files import COMPARISON

_NEEDED, _SHOWN = ("model", "split", "examples"), ("ndcg_", "recall_")


def metrics_table(comparison: Sequence[Mapping[str, str]]) -> str:
    """Markdown of the rows over whole splits; a teacher's sample would not be comparable with them.

    Raises:
        ArtefactError: a column is missing, or holds text in place of numbers.
    """
    if absent := [name for name in _NEEDED if name not in comparison[0]]:
        raise ArtefactError.one("file", COMPARISON, f"lacks the columns {', '.join(absent)}")
    metrics = [name for name in comparison[0] if name.startswith(_SHOWN)]
    head = f"| model | split | examples | {' | '.join(_heading(name) for name in metrics)} |"
    lines = [head, "|---|---|" + "---:|" * (1 + len(metrics))]
    for row in comparison:
        if row["split"] in ("validation", "test") and not row.get("missing"):
            values = " | ".join(_value(row, name) for name in metrics)
            lines.append(f"| {row['model']} | {row['split']} | {row['examples']} | {values} |")
    return "\n".join(lines)


def _value(row: Mapping[str, str], name: str) -> str:
    try:
        return f"{float(row[name]):.4f}" if row.get(name) else ""
    except ValueError:
        raise ArtefactError.one(f"{COMPARISON} {name}", row[name], "is no number") from None


def _heading(metric: str) -> str:
    name, _, cut = metric.partition("_")
    return f"{'NDCG' if name == 'ndcg' else name.capitalize()}@{cut}"
