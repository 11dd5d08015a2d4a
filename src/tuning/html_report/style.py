"""How every figure looks: plain, dark on white, readable on paper."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from optuna.trial import TrialState
from plotly.subplots import make_subplots

INK, FAINT = "#1d2733", "#e3e7ec"
BEST = "#0b6b4f"
STATES = {
    TrialState.PRUNED: ("stopped early", "#d98a1f"),
    TrialState.FAIL: ("failed", "#b3261e"),
    TrialState.RUNNING: ("running", "#8a94a0"),
    TrialState.COMPLETE: ("completed", "#5b84b1"),
}
#: One colour a study, apart for colour-blind eyes too (Okabe and Ito's palette).
STUDIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555")
SCALE = [[0.0, "#e8d9a8"], [0.5, "#5b9aa0"], [1.0, "#12355b"]]

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_AXIS = {
    "gridcolor": FAINT,
    "linecolor": "#9aa5b1",
    "zeroline": False,
    "showline": True,
    "ticks": "outside",
    "ticklen": 4,
    "automargin": True,
    "title": {"standoff": 8, "font": {"size": 13}},
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": _FONT, "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 64, "r": 16, "t": 28, "b": 48},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "title": {"text": ""}},
        "hoverlabel": {"bgcolor": "white", "bordercolor": "#9aa5b1", "font": {"color": INK}},
        "hovermode": "closest",
        "colorway": list(STUDIES),
    }
)


def styled(figure: Any, height: int, **layout: Any) -> Any:
    """A figure in the page's style, ``height`` in pixels."""
    figure.update_layout(template=TEMPLATE, height=height, **layout)
    return figure


def grid(
    titles: list[str], columns: int, row_height: int, gap: int = 78, **options: Any
) -> tuple[Any, list[tuple[int, int]]]:
    """A figure of small panels in reading order, with each panel's row and column (1-based).

    ``row_height`` of a panel and the ``gap`` between rows in pixels; ``options`` go to plotly's ``make_subplots``.
    """
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    inside = rows * row_height + (rows - 1) * gap
    spacing = {"horizontal_spacing": 0.24 / max(columns, 2), "vertical_spacing": gap / inside if rows > 1 else 0.0}
    figure = make_subplots(rows, columns, subplot_titles=titles, **{**spacing, **options})
    figure.update_annotations(font={"size": 13, "color": INK})
    styled(figure, inside + 76)
    return figure, [(index // columns + 1, index % columns + 1) for index in range(len(titles))]


def same_scale(figure: Any, across: bool, up: bool) -> None:
    """All panels show the same range, ``across`` (x), ``up`` (y) or both, and are zoomed together."""
    if across:
        figure.update_xaxes(matches="x")
        figure.layout.xaxis.matches = None  # the first is what the others follow
    if up:
        figure.update_yaxes(matches="y")
        figure.layout.yaxis.matches = None
