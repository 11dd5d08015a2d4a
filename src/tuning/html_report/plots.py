"""Optuna's own plots of a study, in the page's style, with a trial's parameters in every hover."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import Any

import plotly.graph_objects as go
from optuna import visualization
from optuna.distributions import CategoricalDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.study import Study, create_study
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
    metric, figure = metric_title(searches[0].metrics[0]), go.Figure()
    for view in searches:
        dots, best, _ = _plot(visualization.plot_optimization_history, _first_objective(view)).data
        dots.update(showlegend=False, marker={"color": _COMPLETED, "opacity": 0.7})
        best.update(name="best so far" if len(searches) == 1 else inert(view.title), line={"shape": "hv", "width": 2})
        figure.add_traces([_hover(dots, view, dots.x), best])
    if reference is not None:
        label = {"text": "without distillation", "textposition": "end", "yanchor": "bottom"}
        figure.add_hline(y=reference, line={"color": INK, "width": 1, "dash": "dash"}, label=label)
    words = "; ".join(f"{view.title}: best {number(best.values[0])}" for view in searches if (best := view.best()))
    styled(figure, 340, xaxis_title="trial", yaxis_title=f"{inert(metric)} on validation")
    return Panel(figure, f"{metric} by trial. {words}", "Optimisation history")


def pareto(view: StudyView) -> list[Panel]:
    """The front, seen in the first objective and each of the others; nothing of a study with a single objective."""
    names = [inert(metric_title(metric)) for metric in view.metrics]
    words = f"On the front are the trials {', '.join(map(str, sorted(t.number for t in view.study.best_trials)))}"
    panels = []
    for place in range(1, len(names)):
        targets = {"targets": lambda trial, place=place: (trial.values[0], trial.values[place])}
        figure = _plot(visualization.plot_pareto_front, view.study, **targets, target_names=[names[0], names[place]])
        for trace, name, colour in zip(figure.data, ("other trial", "on the front"), (GREY, BEST), strict=True):
            _hover(trace, view, trace.marker.color or []).update(name=name, showlegend=True)
            trace.marker = {"color": colour, "size": 10}
        panels.append(Panel(styled(figure, 360), words, "Pareto front"))
    return panels


def importances(view: StudyView) -> list[Panel]:
    """How much each parameter sets the best trials apart from all; nothing where the trials cannot tell."""
    trials, names = view.completed(), short_names(view.parameters())
    # one that has a single value has no part in any difference, and of a single one there is nothing to compare
    varied = [inert(names[key]) for key in view.used() if len({str(trial.params.get(key)) for trial in trials}) > 1]
    if len(trials) < LEAST_TRIALS or len({trial.values[0] for trial in trials}) == 1 or len(varied) < 2:
        return []
    evaluator = PedAnovaImportanceEvaluator(target_quantile=min(0.5, max(0.1, LEAST_BEST / len(trials))))
    options = {"evaluator": evaluator, "params": varied}
    figure = _plot(visualization.plot_param_importances, _first_objective(view), **options)
    (bars,) = figure.update_traces(marker_color=_COMPLETED, showlegend=False).data
    figure.update_xaxes(range=[0, 1.12], title="").update_yaxes(title="")
    words = "; ".join(f"{name} {share:.2f}" for name, share in zip(bars.y[::-1], bars.x[::-1], strict=True))
    return [Panel(styled(figure, 80 + 26 * len(bars.y)), words, "Parameter importances")]


def slices(view: StudyView) -> list[Panel]:
    """The first objective against each parameter on its own, of the trials that used it; the large dot is the best."""
    study, best, completed, panels = _first_objective(view), view.best(), view.completed(), []
    names, values = short_names(view.parameters()), [trial.values[0] for trial in completed]
    for key in view.used():
        figure = _plot(visualization.plot_slice, study, params=[inert(names[key])])
        (dots,) = figure.data
        _hover(dots, view, dots.marker.color).marker.update(showscale=False, size=7)
        if best and key in best.params:
            place = list(dots.marker.color).index(best.number)
            figure.add_scatter(x=[dots.x[place]], y=[dots.y[place]], mode="markers", showlegend=False)
            _hover(figure.data[-1], view, [best.number]).update(marker={"size": 12, "color": BEST})
        figure.update_xaxes(title="", nticks=5, tickangle=0)
        if figure.layout.xaxis.type == "log":
            figure.update_xaxes(dtick=1 if max(dots.x) / min(dots.x) > _MANY else "D2", exponentformat="e")
        figure.update_yaxes(title="", range=with_room(values, 0.06))
        heading = names[key] if len(dots.x) == len(completed) else f"{names[key]} ({len(dots.x)} of {len(completed)})"
        words = f"The best trial has {names[key]} {number(best.params.get(key, 'not used'))}" if best else heading
        panels.append(Panel(styled(figure, 240), words, heading))
    return panels


def _plot(draw: Callable[..., Any], study: Study | Sequence[Study], **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental functions; few trials, which the page says in its own words
        return draw(study, **options)


def _first_objective(view: StudyView) -> Study:
    """The study as Optuna draws it: the first objective alone, short names, and texts in which plotly finds no tags."""
    study, names = create_study(direction=view.study.directions[0]), short_names(view.parameters())
    for trial in map(copy, view.trials):
        searched = [key for key in trial.params if key in names]
        kinds = {inert(names[key]): _inert(trial.distributions[key]) for key in searched}
        trial.params = {inert(names[key]): _inert(trial.params[key]) for key in searched}
        trial.distributions = kinds
        trial.values = trial.values and trial.values[:1]
        study.add_trial(trial)
    return study


def _inert(value: Any) -> Any:
    """A parameter's value, or what it was drawn from, with texts escaped."""
    if isinstance(value, CategoricalDistribution):
        return CategoricalDistribution([_inert(choice) for choice in value.choices])
    return inert(value) if isinstance(value, str) else value


def _hover(trace: Any, view: StudyView, numbers: Iterable[int]) -> Any:
    """The trace, with each of its points saying all that is known of its trial."""
    texts = [about(view.trials[number], view.metrics) for number in numbers]
    return trace.update(text=texts, hovertemplate="%{text}<extra></extra>")
