"""What was measured of a student, as its cards show it; apart from the graph, which a search never makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_SHOWN = ("ndcg_", "recall_")


def measured(comparison: Sequence[Mapping[str, str]]) -> str:
    """Markdown of the rows over whole splits; a teacher's sample would not be comparable with them."""
    metrics = [name for name in comparison[0] if name.startswith(_SHOWN)]
    head = f"| model | split | examples | {' | '.join(_heading(name) for name in metrics)} |"
    lines = [head, "|---|---|" + "---:|" * (1 + len(metrics))]
    for row in comparison:
        if row["split"] in ("validation", "test") and not row.get("missing"):
            values = " | ".join(f"{float(row[name]):.4f}" if row.get(name) else "" for name in metrics)
            lines.append(f"| {row['model']} | {row['split']} | {row['examples']} | {values} |")
    return "\n".join(lines)


def _heading(metric: str) -> str:
    name, _, cut = metric.partition("_")
    return f"{'NDCG' if name == 'ndcg' else name.capitalize()}@{cut}"
