"""Figures that Optuna does not have: arms with intervals and seeds, their differences, and learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go
from optuna.trial import FrozenTrial

from src.evaluation.comparison import metric_title
from src.tuning.html_report.answer import reference_of, title_of
from src.tuning.html_report.parts import Panel
from src.tuning.html_report.style import BEST, BLUE, GREY, INK, STATES, styled
from src.tuning.html_report.wording import about, inert, interval, number
from src.tuning.study_view import StudyView

#: a value with both ends of its interval
Estimate = tuple[float, float, float]


def arms(fair: Mapping[str, Any]) -> list[Panel]:
    """Each arm's test value with its interval, its seeds as strokes below; and each comparison's difference."""
    values = {title_of(fair, arm["arm"]): _estimate(arm, "test") for arm in fair["arms"]}
    seeds = {title_of(fair, arm["arm"]): arm.get("values_per_seed") or [] for arm in fair["arms"]}
    found = {title_of(fair, line["name"]): _estimate(line, "difference") for line in fair.get("comparisons", [])}
    panels = [Panel(_intervals(values, seeds, []), _words(values), f"{metric_title(fair['metric'])} on test")]
    if found:
        figure = _intervals(found, {}, [0.0]).add_vline(x=0, line={"color": INK, "width": 1, "dash": "dot"})
        panels.append(Panel(figure, _words(found), f"Difference from {reference_of(fair)}"))
    return panels


def _estimate(line: Mapping[str, Any], name: str) -> Estimate:
    low, value, high = line.get("low"), line[name], line.get("high")
    return value, value if low is None else low, value if high is None else high


def _words(lines: Mapping[str, Estimate]) -> str:
    return "; ".join(f"{name} {number(value)} ({interval(low, high)})" for name, (value, low, high) in lines.items())


def _intervals(lines: Mapping[str, Estimate], seeds: Mapping[str, Sequence[float]], shown: Sequence[float]) -> Any:
    """A dot and its interval a line. A value far from those with seeds is written at the edge, not drawn."""
    places, strokes = {name: place for place, name in enumerate(lines)}, [v for own in seeds.values() for v in own]
    ends = [end for name, own in lines.items() if seeds.get(name) or not strokes for end in own[1:]]
    low, high = with_room([*shown, *strokes, *ends], 0.08)
    drawn = {name: own for name, own in lines.items() if low <= own[0] <= high}
    reach = {
        "array": [above - value for value, _, above in drawn.values()],
        "arrayminus": [value - below for value, below, _ in drawn.values()],
    }
    dots = go.Scatter(
        x=[value for value, _, _ in drawn.values()],
        y=[places[name] for name in drawn],
        error_x={"type": "data", "symmetric": False, **reach},
        text=[f"{inert(name)}: {number(own[0])}, from {interval(*own[1:])}" for name, own in drawn.items()],
        hovertemplate="%{text}<extra></extra>",
        mode="markers",
        marker={"size": 9, "color": BLUE},
    )
    marks = go.Scatter(
        x=strokes,
        y=[places[name] + 0.28 for name, own in seeds.items() for _ in own],
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 7, "color": GREY},
        hovertemplate="one seed: %{x:.4f}<extra></extra>",
    )
    figure = go.Figure([dots, marks])
    for name, (value, _, _) in lines.items():
        if name not in drawn:
            edge, side, sign = (low, "left", "◂") if value < low else (high, "right", "▸")
            text = f"{sign} {number(value)}"
            figure.add_annotation(x=edge, y=places[name], text=text, xanchor=side, showarrow=False)
    labels = ["<br>".join(map(inert, wrap(name, 20))) for name in places]
    figure.update_yaxes(tickvals=list(places.values()), ticktext=labels, range=[len(lines) - 0.4, -0.6])
    return styled(figure.update_xaxes(range=[low, high]), 80 + 36 * len(lines), showlegend=False)


def with_room(values: Sequence[float], share: float) -> tuple[float, float]:
    """The ends of an axis that shows these values, with a share of their range beside them."""
    room = share * (max(values) - min(values)) or 0.01
    return min(values) - room, max(values) + room


def learning_curves(searches: Sequence[StudyView]) -> list[Panel]:
    """Every trial's validation metric by epoch, one panel a study, all on one scale; the best trial lies on top."""
    found = [view for view in searches if any(trial.intermediate_values for trial in view.trials)]
    values = [value for s in found for trial in s.trials for value in trial.intermediate_values.values()]
    panels, order = [], list(STATES)
    for view in found:
        best, figure, told = view.best(), go.Figure(), set()
        for trial in sorted(view.trials, key=lambda trial: (trial == best, order.index(trial.state))):
            name, colour = ("best", BEST) if trial == best else STATES[trial.state]
            if trial.intermediate_values:
                figure.add_trace(_curve(trial, view.metrics, name, colour).update(showlegend=name not in told))
                told.add(name)
        title = f"{inert(metric_title(view.metrics[0]))} on validation"
        figure.update_xaxes(title="epoch").update_yaxes(title=title, range=with_room(values, 0.04))
        curve = sorted(best.intermediate_values.items()) if best else []
        words = "; ".join(f"epoch {epoch} {number(value)}" for epoch, value in curve) or "none"
        heading = view.title if len(found) > 1 else ""
        panels.append(Panel(styled(figure, 340), f"The best trial's curve: {words}", heading))
    return panels


def _curve(trial: FrozenTrial, metrics: Sequence[str], name: str, colour: str) -> Any:
    epochs, values = zip(*sorted(trial.intermediate_values.items()), strict=True)
    return go.Scatter(
        x=epochs,
        y=values,
        mode="lines+markers",
        line={"color": colour, "width": 3 if name == "best" else 1.3},
        marker={"color": colour, "size": [0] * (len(epochs) - 1) + [6]},
        opacity=1 if name == "best" else 0.65,
        name=name,
        legendgroup=name,
        hovertemplate=f"epoch %{{x}}: %{{y:.4f}}<br>{about(trial, metrics)}<extra></extra>",
    )
