"""Figures that Optuna does not have: arms with intervals and seeds, their differences, and learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import plotly.graph_objects as go
from optuna.trial import FrozenTrial

from src.tuning.html_report.answer import common_reference, pair_of
from src.tuning.html_report.blocks import Panel
from src.tuning.html_report.sources import Searched
from src.tuning.html_report.style import BEST, BLUE, INK, STATES, styled
from src.tuning.html_report.wording import about, inert, interval, metric_title, number


def arms(fair: Mapping[str, Any]) -> list[Panel]:
    """Each arm's test value with its interval, its seeds as strokes below; and each comparison's difference."""
    values = {str(arm.get("title", arm["arm"])): (arm["test"], arm) for arm in fair["arms"]}
    seeds = {name: list(arm.get("values_per_seed") or []) for name, (_, arm) in values.items()}
    differences = {pair_of(fair, line): (line["difference"], line) for line in fair.get("comparisons", [])}
    metric, reference = inert(metric_title(fair["metric"])), common_reference(fair)
    panels = [Panel(_intervals(values, seeds, []), _words(values), f"{metric} on test")]
    if differences:
        figure = _intervals(differences, {}, [0.0]).add_vline(x=0, line={"color": INK, "width": 1, "dash": "dot"})
        panels.append(Panel(figure, _words(differences), f"Difference from {reference}" if reference else "Difference"))
    return panels


_Lines = Mapping[str, tuple[float, Mapping[str, Any]]]


def _words(lines: _Lines) -> str:
    told = (f"{name} {number(value)} ({interval(*_ends(value, line))})" for name, (value, line) in lines.items())
    return "; ".join(told)


def _ends(value: float, line: Mapping[str, Any]) -> tuple[float, float]:
    low, high = line.get("low"), line.get("high")
    return value if low is None else low, value if high is None else high


def _intervals(lines: _Lines, seeds: Mapping[str, Sequence[float]], shown: Sequence[float]) -> Any:
    """A dot and its interval a line. A value far from those with seeds is written at the edge, not drawn."""
    places = {name: place for place, name in enumerate(lines)}
    ends = [*shown, *(value for values in seeds.values() for value in values)]
    own = {name: _ends(value, line) for name, (value, line) in lines.items()}
    ends += [end for name, pair in own.items() if seeds.get(name) or not any(seeds.values()) for end in pair]
    room = 0.08 * (max(ends) - min(ends)) or 0.01
    low, high = min(ends) - room, max(ends) + room
    drawn = {name: value for name, (value, _) in lines.items() if low <= value <= high}
    dots = go.Scatter(
        x=list(drawn.values()),
        y=[places[name] for name in drawn],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [own[name][1] - value for name, value in drawn.items()],
            "arrayminus": [value - own[name][0] for name, value in drawn.items()],
        },
        text=[f"{inert(name)}: {number(value)}, from {interval(*own[name])}" for name, value in drawn.items()],
        hovertemplate="%{text}<extra></extra>",
        mode="markers",
        marker={"size": 9, "color": BLUE},
    )
    strokes = go.Scatter(
        x=[value for values in seeds.values() for value in values],
        y=[places[name] + 0.28 for name, values in seeds.items() for _ in values],
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 7, "color": "#8a94a0"},
        hovertemplate="one seed: %{x:.4f}<extra></extra>",
    )
    figure = go.Figure([dots, strokes])
    for name, (value, _) in lines.items():
        if name not in drawn:
            edge, side, sign = (low, "left", "◂ ") if value < low else (high, "right", "▸ ")
            text = f"{sign}{number(value)}"
            figure.add_annotation(x=edge, y=places[name], text=text, xanchor=side, showarrow=False)
    ticks = {
        "tickvals": list(places.values()),
        "ticktext": ["<br>".join(map(inert, wrap(name, 20))) for name in places],
    }
    figure.update_yaxes(**ticks, range=[len(lines) - 0.4, -0.6])
    figure.update_xaxes(range=[low, high])
    return styled(figure, 80 + 36 * len(lines), showlegend=False)


def learning_curves(searches: Sequence[Searched]) -> list[Panel]:
    """Every trial's validation metric by epoch, one panel a study, all on one scale; the best trial lies on top."""
    found = [searched for searched in searches if any(trial.intermediate_values for trial in searched.trials)]
    values = [value for s in found for trial in s.trials for value in trial.intermediate_values.values()]
    if not values:
        return []
    room = 0.04 * (max(values) - min(values)) or 0.01
    panels = []
    for searched in found:
        best = searched.best()
        order = list(STATES)
        trials = sorted(searched.trials, key=lambda trial: (trial == best, order.index(trial.state)))
        figure = go.Figure()
        for trial in trials:
            name, colour = ("best", BEST) if trial == best else STATES[trial.state]
            if trial.intermediate_values:
                first = name not in {trace.name for trace in figure.data}
                figure.add_trace(_curve(trial, searched.metrics, name, colour, first))
        figure.update_xaxes(title="epoch")
        title = f"{inert(metric_title(searched.metrics[0]))} on validation"
        figure.update_yaxes(title=title, range=[min(values) - room, max(values) + room])
        curve = sorted(best.intermediate_values.items()) if best else []
        words = "; ".join(f"epoch {epoch} {number(value)}" for epoch, value in curve)
        heading = searched.title if len(found) > 1 else ""
        panels.append(Panel(styled(figure, 340), f"The best trial's curve: {words or 'none'}", heading))
    return panels


def _curve(trial: FrozenTrial, metrics: Sequence[str], name: str, colour: str, legend: bool) -> Any:
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
        showlegend=legend,
        hovertemplate=f"epoch %{{x}}: %{{y:.4f}}<br>{about(trial, metrics)}<extra></extra>",
    )
