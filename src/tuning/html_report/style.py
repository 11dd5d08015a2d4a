"""How every figure looks: plain, dark on white, readable on paper."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from optuna.trial import TrialState

INK, FAINT, BLUE, GREY, BEST = "#1d2733", "#e3e7ec", "#0072b2", "#8a94a0", "#0b6b4f"
STATES = {
    TrialState.PRUNED: ("stopped early", "#d98a1f"),
    TrialState.FAIL: ("failed", "#b3261e"),
    TrialState.RUNNING: ("running", GREY),
    TrialState.COMPLETE: ("completed", "#5b84b1"),
}
_AXIS = {"gridcolor": FAINT, "linecolor": GREY, "zeroline": False, "showline": True, "ticks": "outside", "ticklen": 4}
_AXIS |= {"automargin": True, "title": {"standoff": 8, "font": {"size": 13}}}
_TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif", "size": 12, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 48, "r": 12, "t": 28, "b": 44},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "title": {"text": ""}},
        "hoverlabel": {"bgcolor": "white", "bordercolor": GREY, "font": {"color": INK}, "align": "left"},
        "hovermode": "closest",
        # one colour a study, apart for colour-blind eyes too (Okabe and Ito's palette)
        "colorway": [BLUE, "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555"],
    }
)


def styled(figure: Any, height: int, **layout: Any) -> Any:
    """A figure in the page's style, ``height`` in pixels and as wide as its place."""
    return figure.update_layout(template=_TEMPLATE, height=height, width=None, title=None, **layout)
