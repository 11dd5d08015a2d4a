"""How every figure looks: plain, dark on white, readable on paper."""

from __future__ import annotations

from typing import Any

from optuna.trial import TrialState

INK, BLUE, GREY, BEST = "#1d2733", "#0072b2", "#8a94a0", "#0b6b4f"
STATES = {
    TrialState.PRUNED: ("stopped early", "#d98a1f"),
    TrialState.FAIL: ("failed", "#b3261e"),
    TrialState.RUNNING: ("running", GREY),
    TrialState.COMPLETE: ("completed", "#5b84b1"),
}
_LAYOUT = {
    "template": "plotly_white",
    "font": {"family": "system-ui, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif", "size": 12, "color": INK},
    "margin": {"l": 48, "r": 12, "t": 28, "b": 44},
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "title": {"text": ""}},
    "hoverlabel": {"bgcolor": "white", "bordercolor": GREY, "font": {"color": INK}, "align": "left"},
    # one colour a study, apart for colour-blind eyes too (Okabe and Ito's palette)
    "colorway": [BLUE, "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555"],
}
_AXIS = {"showline": True, "linecolor": GREY, "zeroline": False, "ticks": "outside", "ticklen": 4, "title_standoff": 8}


def styled(figure: Any, height: int, **layout: Any) -> Any:
    """A figure in the page's style.

    Args:
        figure: is changed.
        height: in pixels; it is as wide as its place.
        layout: what this figure has beside the style.
    """
    figure.update_layout(_LAYOUT, height=height, width=None, title=None, **layout)
    return figure.update_xaxes(_AXIS).update_yaxes(_AXIS)
