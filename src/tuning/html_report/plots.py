"""Optuna's own plots of a study, in the page's style: its texts made inert, a trial's parameters in every hover."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from optuna import visualization
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.study import StudyDirection
from optuna.trial import TrialState

from src.evaluation.comparison import metric_title
from src.tuning.html_report.figures import with_room
from src.tuning.html_report.parts import Panel
from src.tuning.html_report.style import BEST, GREY, INK, STATES, styled
from src.tuning.html_report.wording import about, inert, number, short_names
from src.tuning.study_view import StudyView

#: fewer trials cannot tell which parameter mattered; the best tenth is set against all, but never fewer than five
LEAST_TRIALS, LEAST_BEST = 4, 5
#: the ratio from which on a logarithmic axis has room for powers of ten only
_MANY = 300
_COMPLETED = STATES[TrialState.COMPLETE][1]


def history(searches: Sequence[StudyView], reference: float | None) -> Panel:
    """Completed trials by number, and the best so far; ``reference`` is the value without distillation."""
    single, metric, figure = len(searches) == 1, metric_title(searches[0].metrics[0]), go.Figure()
    for view in searches:
        dots, *best, _ = _plot(visualization.plot_optimization_history, view).data
        dots.update(name="trial", showlegend=single, marker={"color": _COMPLETED, "opacity": 0.7})
        for line in best:
            line.update(name="best so far" if single else inert(view.title), line={"shape": "hv", "width": 2})
        figure.add_traces([_hover(dots, view, dots.x), *best])
    if reference is not None:
        label = {"text": "without distillation", "textposition": "end", "yanchor": "bottom"}
        figure.add_hline(y=reference, line={"color": INK, "width": 1, "dash": "dash"}, label=label)
    words = "; ".join(f"{s.title}: best {number(best.values[0])}" for s in searches if (best := s.best()))
    styled(figure, 340, xaxis_title="trial", yaxis_title=f"{inert(metric)} on validation")
    return Panel(figure, f"{metric} by trial. {words}", "Optimisation history")


def pareto(view: StudyView) -> list[Panel]:
    """The front, seen in the first objective and each of the others."""
    first, *others = [metric_title(metric) for metric in view.metrics]
    words = f"On the front are the trials {', '.join(map(str, sorted(t.number for t in view.study.best_trials)))}"
    panels = []
    for place, other in enumerate(others, start=1):
        options = {"targets": lambda trial, place=place: (trial.values[0], trial.values[place])}
        figure = _plot(visualization.plot_pareto_front, view, **options, target_names=[first, other])
        for trace, name, colour in zip(figure.data, ("other trial", "on the front"), (GREY, BEST), strict=True):
            _hover(trace, view, trace.marker.color or []).update(name=name, showlegend=True)
            trace.marker = {"color": colour, "size": 10}
        panels.append(Panel(styled(figure, 360), words, "Pareto front"))
    return panels


def importances(view: StudyView) -> tuple[Panel | None, list[str]]:
    """How much each parameter sets the best trials apart from all, and the parameters, the most important one first.

    ``None`` and no parameters where the trials cannot tell.
    """
    trials = view.finite()
    # one that has a single value has no part in any difference, and of a single one there is nothing to compare
    used = [key for key in view.used() if len({str(trial.params.get(key)) for trial in trials}) > 1]
    if len(trials) < LEAST_TRIALS or len({trial.values[0] for trial in trials}) == 1 or len(used) < 2:
        return None, []
    sign = -1 if view.study.directions[0] == StudyDirection.MAXIMIZE else 1  # with a target, less is better
    options = {
        "params": used,
        "evaluator": PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, LEAST_BEST / len(trials)))),
        "target": lambda trial: sign * trial.values[0],
    }
    figure = _plot(visualization.plot_param_importances, view, **options)
    shares = dict(zip(figure.data[0].y, figure.data[0].x, strict=True))
    hover = "%{y}: %{x:.3f}<extra></extra>"
    figure.update_traces(marker_color=_COMPLETED, showlegend=False, hovertemplate=hover)
    figure.update_xaxes(range=[0, 1.12], title="").update_yaxes(title="")
    order = sorted(shares, key=lambda name: -shares[name])
    keys = {inert(name): key for key, name in short_names(used).items()}
    words = "; ".join(f"{name} {shares[name]:.2f}" for name in order)
    return Panel(styled(figure, 80 + 26 * len(used)), words, "Parameter importances"), [keys[name] for name in order]


def contour(view: StudyView, pair: Sequence[str]) -> Panel | None:
    """The first objective over two parameters; ``None`` where too few trials had different values of both."""
    trials = [trial for trial in view.finite() if all(key in trial.params for key in pair)]
    if len(pair) < 2 or any(len({str(trial.params[key]) for trial in trials}) < 2 for key in pair):
        return None
    figure = _plot(visualization.plot_contour, view, params=list(pair))
    figure.data[0].update(colorbar={"title": "", "thickness": 10})
    _hover(figure.data[1], view, [trial.number for trial in trials]).update(marker={"size": 6})
    return Panel(styled(figure, 320), _best_at(view, pair), " and ".join(short_names(pair).values()))


def parallel_coordinates(view: StudyView) -> Panel:
    """Each completed trial as a line over all parameters, of a study with one objective."""
    keys, metric = sorted(view.used()), inert(metric_title(view.metrics[0]))
    figure = _plot(visualization.plot_parallel_coordinate, view, params=keys)
    for line, trial in zip(figure.data, view.finite(), strict=False):
        line.update(hovertemplate=f"{about(trial, view.metrics)}<extra></extra>", opacity=0.7)
    names = [metric, *map(inert, short_names(keys).values())]
    figure.update_xaxes(ticktext=names, ticks="", showline=False, side="top")
    figure.data[-1].marker.colorbar.update(title="", thickness=10)
    styled(figure, 380, margin={"l": 36, "r": 12, "t": 40, "b": 8})
    return Panel(figure, _best_at(view, keys), "Parallel coordinates", wide=True)


def slices(view: StudyView) -> list[Panel]:
    """The first objective against each parameter on its own, of the trials that used it; the large dot is the best."""
    best, completed, panels = view.best(), view.finite(), []
    for key, name in short_names(view.used()).items():
        figure = _plot(visualization.plot_slice, view, params=[key])
        (dots,) = figure.data
        _hover(dots, view, dots.marker.color).marker.update(showscale=False, size=7)
        if best and key in best.params:
            place = list(dots.marker.color).index(best.number)
            figure.add_scatter(x=[dots.x[place]], y=[dots.y[place]], mode="markers", showlegend=False)
            _hover(figure.data[-1], view, [best.number]).update(marker={"size": 12, "color": BEST})
        heading = name if len(dots.x) == len(completed) else f"{name} ({len(dots.x)} of {len(completed)})"
        figure.update_xaxes(title="", nticks=5, tickangle=0)
        if figure.layout.xaxis.type == "log":
            figure.update_xaxes(dtick=1 if max(dots.x) / min(dots.x) > _MANY else "D2", exponentformat="e")
        figure.update_yaxes(title="", range=with_room([trial.values[0] for trial in completed], 0.06))
        panels.append(Panel(styled(figure, 240), _best_at(view, [key]), heading))
    return panels


def timeline(view: StudyView) -> Panel:
    """When each trial ran."""
    figure = _plot(visualization.plot_timeline, view).update_yaxes(title="trial").update_xaxes(title="")
    for bars in figure.data:
        name, colour = STATES[TrialState[bars.name]]
        _hover(bars, view, bars.y).update(name=name, marker_color=colour)
    words = f"{len(view.trials)} trials, one bar each from its start to its end"
    return Panel(styled(figure, min(480, 130 + 9 * len(view.trials))), words, "When each trial ran")


def _best_at(view: StudyView, keys: Sequence[str]) -> str:
    """Where the best trial lies, in words."""
    best, names = view.best(), short_names(keys)
    params = best.params if best else {}
    return "The best trial has " + ", ".join(f"{names[key]} {number(params.get(key, 'not used'))}" for key in keys)


def _plot(draw: Callable[..., Any], view: StudyView, **options: Any) -> Any:
    """One of Optuna's plots of the first objective; its texts are inert, parameters have their short names."""
    if draw not in (visualization.plot_pareto_front, visualization.plot_timeline):
        several = {"target": lambda trial: trial.values[0]} if len(view.metrics) > 1 else {}
        options = {"target_name": metric_title(view.metrics[0]), **several, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental functions; few trials, which the page says in its own words
        figure = draw(view.study, **options)
    return go.Figure(_inert(figure.to_plotly_json(), short_names(view.parameters())))


def _inert(value: Any, names: Mapping[str, str]) -> Any:
    """A figure's content with every text escaped, since plotly reads some tags in labels."""
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(value, str):
        return inert(names.get(value, value))
    if isinstance(value, dict):
        return {key: _inert(part, names) for key, part in value.items() if key != "template"}
    return [_inert(part, names) for part in value] if isinstance(value, (list, tuple)) else value


def _hover(trace: Any, view: StudyView, numbers: Iterable[int]) -> Any:
    """The trace, with each of its points saying all that is known of its trial."""
    texts = [about(view.trials[number], view.metrics) for number in numbers]
    return trace.update(text=texts, hovertemplate="%{text}<extra></extra>")
