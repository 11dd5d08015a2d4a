"""Figures of the searched space: how important each parameter was, and slices."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from src.tuning.html_report.coordinates import is_logarithmic
from src.tuning.html_report.sources import Searched
from src.tuning.html_report.style import BEST, FAINT, STATES, grid, same_scale
from src.tuning.html_report.wording import inert, inert_metric, short_names

LEAST_TRIALS = 4
#: The best tenth is set against all trials, but no fewer than this many (Optuna's advice) and no more than half.
LEAST_BEST = 5


def importance_shares(searched: Searched) -> dict[str, float] | str:
    """Each parameter's share (short names, sum 1, largest first) of what makes the first objective good.

    PED-ANOVA, which knows conditional parameters. Returns a sentence where the trials cannot tell.
    """
    completed, parameters = searched.completed(), searched.parameters()
    finite = [trial.values[0] for trial in completed if math.isfinite(trial.values[0])]
    if len(finite) < LEAST_TRIALS:
        return f"it takes at least {LEAST_TRIALS} completed trials to say what mattered; here are {len(finite)}."
    if len(set(finite)) == 1:
        return f"all {len(finite)} completed trials have the same value: no parameter can be said to matter."
    if not parameters:
        return "no parameter was searched."
    sign = -1.0 if searched.maximised else 1.0
    best_part = min(0.5, max(0.1, LEAST_BEST / len(finite)))
    known = [key for key in parameters if any(key in trial.params for trial in completed)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are said in the page's own words: few trials; the sign is given
        found = get_param_importances(
            searched.study,
            evaluator=PedAnovaImportanceEvaluator(target_quantile=best_part),
            params=known,
            target=lambda trial: sign * trial.values[0],
            normalize=False,
        )
    total = sum(found.values())
    if total == 0:
        return "the best trials cannot be told from the others by any parameter."
    names = short_names(found)
    return {names[key]: part / total for key, part in sorted(found.items(), key=lambda pair: -pair[1])}


def importances(searches: Sequence[tuple[Searched, Mapping[str, float]]]) -> Any:
    """Bars of each parameter's share, one panel a study."""
    titles = [inert(searched.title) if len(searches) > 1 else "" for searched, _ in searches]
    height = 30 + 26 * max(len(shares) for _, shares in searches)
    figure, places = grid(titles, 2, height)
    for (_, shares), place in zip(searches, places, strict=True):
        bars = go.Bar(
            x=list(shares.values()),
            y=[inert(name) for name in shares],
            orientation="h",
            marker={"color": STATES[TrialState.COMPLETE][1]},
            text=[f"{share:.2f}" for share in shares.values()],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
            showlegend=False,
        )
        figure.add_trace(bars, *place)
    figure.update_yaxes(autorange="reversed", gridcolor="white")
    return figure.update_xaxes(range=[0, 1.08], gridcolor=FAINT)


def slices(searched: Searched) -> Any:
    """The first objective against each parameter on its own; a parameter's panel has the trials that used it."""
    completed, best = searched.completed(), searched.best()
    used = {key: [trial for trial in completed if key in trial.params] for key in searched.parameters()}
    parameters = {key: kind for key, kind in searched.parameters().items() if used[key]}
    names = short_names(parameters)
    titles = [_title(inert(names[key]), len(used[key]), len(completed)) for key in parameters]
    figure, places = grid(titles, 4, 230, shared_yaxes=True)
    for (key, kind), place in zip(parameters.items(), places, strict=True):
        _dots(figure, place, key, used[key], STATES[TrialState.COMPLETE][1], 7)
        _dots(figure, place, key, [trial for trial in used[key] if trial is best], BEST, 11)
        figure.update_xaxes(**_axis(kind), row=place[0], col=place[1])
    figure.update_yaxes(title=inert_metric(searched.metrics[0]), col=1)
    same_scale(figure, across=False, up=True)
    return figure.update_layout(showlegend=False)


def _title(name: str, used: int, completed: int) -> str:
    return name if used == completed else f"{name} ({used} of {completed})"


def _axis(kind: BaseDistribution) -> dict[str, Any]:
    if isinstance(kind, CategoricalDistribution):
        return {"type": "category"}
    if not is_logarithmic(kind):
        return {}
    decades = math.log10(getattr(kind, "high", 1) / getattr(kind, "low", 1))
    ticks = {"nticks": 4} if decades < 1 else {"dtick": 1 if decades > 2.5 else "D2"}
    return {"type": "log", "exponentformat": "e", **ticks}


def _dots(figure: Any, place: tuple[int, int], key: str, trials: Sequence[FrozenTrial], colour: str, size: int) -> None:
    trace = go.Scatter(
        x=[_shown(trial.params[key]) for trial in trials],
        y=[trial.values[0] for trial in trials],
        customdata=[trial.number for trial in trials],
        mode="markers",
        marker={"color": colour, "size": size, "opacity": 0.8},
        hovertemplate="trial %{customdata}: %{x} gives %{y:.4f}<extra></extra>",
    )
    figure.add_trace(trace, *place)


def _shown(value: Any) -> Any:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else inert(value)
