"""Figures of values: history, the Pareto front, learning curves."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import plot_pareto_front

from src.tuning.html_report.sources import Searched
from src.tuning.html_report.style import BEST, INK, STATES, STUDIES, grid, same_scale, styled
from src.tuning.html_report.wording import inert, inert_metric, number, short_names

#: An epoch, its value and the trial's number; nothing where one curve ends and the next begins.
_Point = tuple[int | None, float | None, int | None]


def history(searches: Sequence[Searched], reference: float | None) -> Any:
    """Completed trials by number, and the best value so far; ``reference`` is the value without distillation."""
    figure = go.Figure()
    single = len(searches) == 1
    for index, searched in enumerate(searches):
        completed, colour = searched.completed(), STUDIES[index % len(STUDIES)]
        numbers, values = [trial.number for trial in completed], [trial.values[0] for trial in completed]
        marker = {"color": STATES[TrialState.COMPLETE][1] if single else colour, "size": 8, "opacity": 0.75}
        hover = "trial %{x}: %{y:.4f}<extra></extra>"
        dots = go.Scatter(x=numbers, y=values, mode="markers", marker=marker, name="trial", hovertemplate=hover)
        line = {"color": BEST if single else colour, "shape": "hv", "width": 2}
        name = "best so far" if single else inert(searched.title)
        best = go.Scatter(x=numbers, y=_best_so_far(searched), mode="lines", line=line, name=name)
        figure.add_traces([dots.update(showlegend=single), best])
    if reference is not None:
        text = {"text": "without distillation", "textposition": "end", "yanchor": "bottom"}
        figure.add_hline(y=reference, line={"color": INK, "width": 1, "dash": "dash"}, label=text)
    metric = inert_metric(searches[0].metrics[0])
    return styled(figure, 380, xaxis_title="trial", yaxis_title=f"{metric} on validation")


def _best_so_far(searched: Searched) -> list[float]:
    better = max if searched.maximised else min
    found: list[float] = []
    for trial in searched.completed():
        found.append(better(found[-1], trial.values[0]) if found else trial.values[0])
    return found


def pareto(searched: Searched, other: int) -> Any:
    """Optuna's plot of the front, seen in the first objective and objective ``other``."""
    names = [inert_metric(searched.metrics[place]) for place in (0, other)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        figure = plot_pareto_front(
            searched.study, target_names=names, targets=lambda trial: [trial.values[0], trial.values[other]]
        )
    for trace, name, colour in zip(figure.data, ("other trial", "on the front"), ("#b9c3ce", BEST), strict=True):
        numbers = list(trace.marker.color or [])
        about = [_about(searched.trials[number], searched.metrics) for number in numbers]
        trace.update(name=f"{name} ({len(numbers)})", showlegend=True, customdata=numbers, text=about)
        trace.update(hovertemplate="%{text}<extra></extra>")
        trace.marker.update(color=colour, colorbar=None, showscale=False, size=10)
    return styled(figure, 420, title=None)


def _about(trial: FrozenTrial, metrics: Sequence[str]) -> str:
    values = [f"{inert_metric(name)} {number(v)}" for name, v in zip(metrics, trial.values, strict=True)]
    names = short_names(trial.params)
    chosen = [f"{inert(names[key])} {inert(number(value))}" for key, value in trial.params.items()]
    return "<br>".join([f"trial {trial.number}", *values, *chosen])


def learning_curves(searches: Sequence[Searched]) -> Any:
    """Every trial's validation metric by epoch, one panel a study: one trace a state, trials parted by gaps.

    A second trace a state has each curve's last point: where a pruned trial was stopped.
    """
    titles = [inert(searched.title) if len(searches) > 1 else "" for searched in searches]
    figure, places = grid(titles, 2, 300 if len(searches) > 1 else 380, gap=100)
    shown: set[str] = set()
    for searched, place in zip(searches, places, strict=True):
        best = searched.best()
        for state, (name, colour) in STATES.items():
            trials = [trial for trial in searched.having(state) if best is None or trial.number != best.number]
            _curves(figure, place, trials, name, {"color": colour, "width": 1.3}, shown)
        if best is not None:
            _curves(figure, place, [best], "best", {"color": BEST, "width": 3}, shown)
    figure.update_xaxes(title="epoch")
    figure.update_yaxes(title=f"{inert_metric(searches[0].metrics[0])} on validation", col=1)
    same_scale(figure, across=True, up=True)
    height = figure.layout.height + 30
    return figure.update_layout(height=height, legend={"yref": "container", "y": 0.995, "yanchor": "top"}, margin_t=60)


def _curves(
    figure: Any, place: tuple[int, int], trials: Iterable[FrozenTrial], name: str, line: dict[str, Any], shown: set[str]
) -> None:
    curves = [curve for curve in map(_points, trials) if curve]
    if not curves:
        return
    look = {"opacity": 1.0 if name == "best" else 0.65, "legendgroup": name}
    gaps = [point for curve in curves for point in [*curve, (None, None, None)]][:-1]
    figure.add_trace(_trace(gaps, mode="lines", line=line, name=name, showlegend=name not in shown, **look), *place)
    ends, marker = [curve[-1] for curve in curves], {"color": line["color"], "size": 5}
    figure.add_trace(_trace(ends, mode="markers", marker=marker, name=f"{name}: end", showlegend=False, **look), *place)
    shown.add(name)


def _trace(points: Sequence[_Point], **look: Any) -> Any:
    epochs, values, numbers = ([point[axis] for point in points] for axis in range(3))
    hover = "trial %{customdata}, epoch %{x}: %{y:.4f}<extra></extra>"
    return go.Scatter(x=epochs, y=values, customdata=numbers, hovertemplate=hover, **look)


def _points(trial: FrozenTrial) -> list[_Point]:
    return [(epoch, value, trial.number) for epoch, value in sorted(trial.intermediate_values.items())]
