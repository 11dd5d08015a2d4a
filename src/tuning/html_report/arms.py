"""The figure of a fair comparison: arms with intervals and seeds, and their paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from src.tuning.html_report.style import INK, STUDIES, grid
from src.tuning.html_report.wording import inert, inert_metric, number

_SEEDS = "#8a94a0"


@dataclass(frozen=True)
class _Line:
    """A name, its value with both ends of its interval, and the values of its seeds."""

    name: str
    value: float
    low: float
    high: float
    seeds: Sequence[float] = ()

    @classmethod
    def of(cls, name: str, value: float, line: Mapping[str, Any], seeds: Sequence[float] = ()) -> _Line:
        low, high = line.get("low"), line.get("high")
        return cls(inert(name), value, value if low is None else low, value if high is None else high, seeds)


def common_reference(fair: Mapping[str, Any]) -> str | None:
    """The title of the one arm that all comparisons are against; ``None`` where they differ."""
    against = {line["against"] for line in fair.get("comparisons", [])}
    return title_of(fair, against.pop()) if len(against) == 1 else None


def title_of(fair: Mapping[str, Any], arm: str) -> str:
    """How an arm is called."""
    return next((str(line.get("title", arm)) for line in fair["arms"] if line["arm"] == arm), arm)


def arms(fair: Mapping[str, Any]) -> Any:
    """Left: each arm's test value with its interval and its seeds; right: each comparison's difference."""
    metric, reference = inert_metric(fair["metric"]), common_reference(fair)
    lines = [
        _Line.of(str(arm.get("title", arm["arm"])), arm["test"], arm, arm.get("values_per_seed") or [])
        for arm in fair["arms"]
    ]
    differences = [_Line.of(_pair(fair, line, reference), line["difference"], line) for line in fair["comparisons"]]
    right = f"difference from {inert(reference)}" if reference else "difference"
    height = 30 + 42 * max(len(lines), len(differences))
    figure, (left_place, right_place) = grid([f"{metric} on test", right], 2, height, horizontal_spacing=0.2)
    _draw(figure, left_place, lines)
    _draw(figure, right_place, differences)
    row, column = right_place
    figure.add_vline(x=0, line={"color": INK, "width": 1, "dash": "dot"}, row=row, col=column)
    return figure.update_layout(showlegend=False)


def _pair(fair: Mapping[str, Any], line: Mapping[str, Any], reference: str | None) -> str:
    name = title_of(fair, line["name"])
    return name if reference else f"{name} – {title_of(fair, line['against'])}"


def _draw(figure: Any, place: tuple[int, int], lines: Sequence[_Line]) -> None:
    """Seeds as strokes under their mean. A line far from those with seeds is written at the edge, not drawn."""
    row, column = place
    low, high = _range(lines)
    seeds = [(value, at + 0.28, line.name) for at, line in enumerate(lines) for value in line.seeds]
    marker = {"symbol": "line-ns-open", "size": 7, "color": _SEEDS, "line": {"width": 1.5}}
    strokes = go.Scatter(
        x=[value for value, _, _ in seeds],
        y=[at for _, at, _ in seeds],
        text=[name for _, _, name in seeds],
        mode="markers",
        marker=marker,
        hovertemplate="%{text}, one seed: %{x:.4f}<extra></extra>",
    )
    figure.add_trace(_dots([(at, line) for at, line in enumerate(lines) if low <= line.value <= high]), *place)
    figure.add_trace(strokes, *place)
    for at, line in enumerate(lines):
        if not low <= line.value <= high:
            edge, side, sign = (low, "left", "◂ ") if line.value < low else (high, "right", "▸ ")
            text = {"text": f"{sign}{number(line.value)}", "xanchor": side, "showarrow": False}
            figure.add_annotation(x=edge, y=at, **text, row=row, col=column)
    names = [line.name for line in lines]
    ticks = {"tickvals": list(range(len(lines))), "ticktext": names, "range": [len(lines) - 0.4, -0.6]}
    figure.update_yaxes(**ticks, row=row, col=column)
    figure.update_xaxes(range=[low, high], row=row, col=column)


def _range(lines: Sequence[_Line]) -> tuple[float, float]:
    shown = [line for line in lines if line.seeds] or lines
    ends = [0.0] if not any(line.seeds for line in lines) else []  # differences are seen against 0
    ends += [end for line in shown for end in (line.low, line.high, *line.seeds)]
    room = 0.08 * (max(ends) - min(ends)) or 0.01
    return min(ends) - room, max(ends) + room


def _dots(lines: Sequence[tuple[int, _Line]]) -> Any:
    return go.Scatter(
        x=[line.value for _, line in lines],
        y=[at for at, _ in lines],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [line.high - line.value for _, line in lines],
            "arrayminus": [line.value - line.low for _, line in lines],
            "thickness": 2,
            "width": 6,
        },
        customdata=[[line.low, line.high] for _, line in lines],
        text=[line.name for _, line in lines],
        hovertemplate="%{text}: %{x:.4f}, from %{customdata[0]:.4f} to %{customdata[1]:.4f}<extra></extra>",
        mode="markers",
        marker={"size": 9, "color": STUDIES[0]},
    )
