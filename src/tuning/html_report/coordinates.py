"""Parallel coordinates: a completed trial is a line over all parameters, arms together.

Drawn as vector lines: plotly's own parallel coordinates need WebGL, which not every browser has, and a page that may
evaluate code. Dragging over an axis (`templates/brush.js`) keeps the lines that pass there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial
from plotly.colors import sample_colorscale

from src.tuning.html_report.sources import Searched
from src.tuning.html_report.style import INK, SCALE, styled
from src.tuning.html_report.wording import inert, inert_metric, number, short_names

#: More lines than this are a carpet; the best are drawn.
MOST_LINES = 300
_TICKS = 4
#: Pixels: the drawing on a page of 1200, and a letter of a tick.
_WIDTH, _LETTER = 1000, 6.4


@dataclass(frozen=True)
class _Axis:
    """A label; each trial's height in 0..1; heights that carry a text (not yet escaped); each trial's own text."""

    label: str
    heights: Sequence[float]
    ticks: Sequence[tuple[float, str]]
    texts: Sequence[str]


def scale_of(kind: BaseDistribution) -> Callable[[Any], float]:
    """A value's place on its parameter's axis: a choice's index, a number or its logarithm (base 10)."""
    if isinstance(kind, CategoricalDistribution):
        return lambda value: float(kind.choices.index(value))
    return (lambda value: math.log10(value)) if is_logarithmic(kind) else float


def is_logarithmic(kind: BaseDistribution) -> bool:
    """Whether a parameter was drawn on a logarithmic scale."""
    return bool(getattr(kind, "log", False))


def parallel_coordinates(searches: Sequence[Searched]) -> Any:
    """The lines, worst first so that the best lie on top and are darkest; the first trace is the colour bar."""
    drawn = _best_last(searches)
    axes = _axes(searches, drawn)
    ranks = [index / max(1, len(drawn) - 1) for index in range(len(drawn))]
    figure = go.Figure(_colour_bar([trial.values[0] for _, trial in drawn], inert_metric(searches[0].metrics[0])))
    for index, ((searched, trial), colour) in enumerate(zip(drawn, sample_colorscale(SCALE, ranks), strict=True)):
        name = f"trial {trial.number}" if len(searches) == 1 else f"{inert(searched.title)}, trial {trial.number}"
        figure.add_trace(_line(axes, index, name, colour))
    _draw_axes(figure, axes)
    return styled(figure, 440, showlegend=False, dragmode="select", margin={"l": 8, "r": 20, "t": 44, "b": 12})


def _best_last(searches: Sequence[Searched]) -> list[tuple[Searched, FrozenTrial]]:
    sign = 1.0 if searches[0].maximised else -1.0
    trials = [(searched, trial) for searched in searches for trial in searched.completed()]
    finite = [pair for pair in trials if math.isfinite(pair[1].values[0])]
    return sorted(finite, key=lambda pair: sign * pair[1].values[0])[-MOST_LINES:]


def _axes(searches: Sequence[Searched], drawn: Sequence[tuple[Searched, FrozenTrial]]) -> list[_Axis]:
    trials = [trial for _, trial in drawn]
    axes = []
    if len(searches) > 1:
        known = {searched.name: float(place) for place, searched in enumerate(searches)}
        ticks = [(place, searched.title) for searched, place in zip(searches, known.values(), strict=True)]
        places = [known[searched.name] for searched, _ in drawn]
        axes.append(_axis("arm", dict(enumerate(places)), ticks, [inert(searched.title) for searched, _ in drawn]))
    parameters = _joined(searches)
    names = short_names(parameters)
    used = {key: kind for key, kind in parameters.items() if any(key in trial.params for trial in trials)}
    axes += [_parameter(inert(names[key]), key, kind, trials) for key, kind in used.items()]
    values = {index: trial.values[0] for index, trial in enumerate(trials)}
    texts = [number(value) for value in values.values()]
    metric = inert_metric(searches[0].metrics[0])
    return [*axes, _axis(metric, values, _steps(list(values.values()), number), texts)]


def _joined(searches: Sequence[Searched]) -> dict[str, BaseDistribution]:
    """All parameters of all studies; a categorical one with the choices of all."""
    found: dict[str, BaseDistribution] = {}
    for searched in searches:
        for key, kind in searched.parameters().items():
            known = found.setdefault(key, kind)
            if isinstance(known, CategoricalDistribution) and isinstance(kind, CategoricalDistribution):
                found[key] = CategoricalDistribution(tuple(dict.fromkeys((*known.choices, *kind.choices))))
    return found


def _parameter(label: str, key: str, kind: BaseDistribution, trials: Sequence[FrozenTrial]) -> _Axis:
    scale = scale_of(kind)
    places = {index: scale(trial.params[key]) for index, trial in enumerate(trials) if key in trial.params}
    if isinstance(kind, CategoricalDistribution):
        ticks = [(float(place), str(choice)) for place, choice in enumerate(kind.choices)]
    else:
        ticks = _steps(list(places.values()), lambda at: _short(10**at if is_logarithmic(kind) else at))
    texts = [inert(number(trial.params[key])) if key in trial.params else "not used" for trial in trials]
    return _axis(label, places, ticks, texts)


def _steps(values: Sequence[float], text: Callable[[float], str]) -> list[tuple[float, str]]:
    low, high = min(values), max(values)
    parts = range(_TICKS + 1) if high > low else range(1)
    return [(at, text(at)) for at in (low + (high - low) * part / _TICKS for part in parts)]


def _short(value: float) -> str:
    return f"{value:.3g}"


def _axis(label: str, places: dict[int, float], ticks: Sequence[tuple[float, str]], texts: Sequence[str]) -> _Axis:
    """Heights between the lowest and highest tick; trials without a place lie at the foot, "not used"."""
    missing = len(places) < len(texts)
    foot = 0.14 if missing else 0.0
    low = min(ticks[0][0], *places.values())
    width = max(ticks[-1][0], *places.values()) - low

    def height(at: float) -> float:
        return foot + (1 - foot) * ((at - low) / width if width else 0.5)

    shown = [(height(at), text) for at, text in ticks]
    heights = [height(places[index]) if index in places else 0.0 for index in range(len(texts))]
    return _Axis(label, heights, [(0.0, "not used"), *shown] if missing else shown, texts)


def _line(axes: Sequence[_Axis], index: int, name: str, colour: str) -> Any:
    about = "<br>".join([f"<b>{name}</b>", *(f"{axis.label} {axis.texts[index]}" for axis in axes)])
    same = {"marker": {"opacity": 1}}  # the brush fades whole lines; plotly would fade points
    return go.Scatter(
        x=list(range(len(axes))),
        y=[axis.heights[index] for axis in axes],
        mode="lines+markers",
        line={"color": colour, "width": 1.6},
        marker={"size": 5, "color": colour},
        selected=same,
        unselected=same,
        name=name,
        hovertemplate=f"{about}<extra></extra>",
    )


def _colour_bar(values: Sequence[float], metric: str) -> Any:
    """Colours go by rank, so that one trial far off does not make all others alike; ``values`` rise in quality."""
    places = [round(part * (len(values) - 1) / _TICKS) for part in range(_TICKS + 1)]
    bar = {
        "title": {"text": metric, "font": {"size": 13}, "side": "right"},
        "thickness": 12,
        "outlinewidth": 0,
        "len": 0.9,
        "tickvals": [part / _TICKS for part in range(_TICKS + 1)],
        "ticktext": [number(values[place]) for place in places],
    }
    marker = {"color": [0, 1], "colorscale": SCALE, "showscale": len(values) > 1, "colorbar": bar, "size": 0.1}
    return go.Scatter(x=[None, None], y=[None, None], mode="markers", marker=marker, hoverinfo="skip")


def _draw_axes(figure: Any, axes: Sequence[_Axis]) -> None:
    """Axes with their heads (in two rows where there are many) and, left of each, its ticks."""
    reach = max(len(text) for _, text in axes[0].ticks) * _LETTER + 16
    unit = max(40.0, (_WIDTH - reach) / len(axes))
    room = int(unit / _LETTER) - 2
    small = {"showarrow": False, "font": {"size": 11}, "bgcolor": "rgba(255,255,255,0.75)", "borderpad": 1}
    lines = [
        {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": {"color": INK, "width": 1}, "layer": "below"}
        for x in range(len(axes))
    ]
    heads = [
        {"x": x, "y": 1.05, "yshift": 18 * (x % 2 if unit < 110 else 0), "text": f"<b>{axis.label}</b>"}
        | {"showarrow": False, "yanchor": "bottom"}
        for x, axis in enumerate(axes)
    ]
    ticks = [
        {
            "x": x,
            "y": height,
            "text": inert(_cut(text, room if x else len(text))),
            "xanchor": "right",
            "xshift": -5,
            **small,
        }
        for x, axis in enumerate(axes)
        for height, text in axis.ticks
    ]
    figure.update_layout(shapes=lines, annotations=[*heads, *ticks])
    figure.update_xaxes(visible=False, range=[-reach / unit, len(axes) - 0.85], fixedrange=True)
    figure.update_yaxes(visible=False, range=[-0.06, 1.14], fixedrange=True)


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"
