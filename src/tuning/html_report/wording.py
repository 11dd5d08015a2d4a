"""Names and numbers as the report writes them."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from src.evaluation.comparison import metric_title

NOTHING = "–"


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Each dotted key's last part, or the whole key where two keys would look alike."""
    known = list(keys)
    count = Counter(key.rpartition(".")[2] for key in known)
    return {key: last if count[last := key.rpartition(".")[2]] == 1 else key for key in known}


def number(value: Any) -> str:
    """A value for people: thousands separated, four decimals between 0.01 and 10, four digits elsewhere."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or (abs(value) >= 1000 and math.isfinite(value)):
        return f"{value:,.0f}"
    return f"{value:.4f}" if 0.01 <= abs(value) < 10 else f"{value:.4g}"


def named_values(params: Mapping[str, Any]) -> list[str]:
    """Each parameter's short name with its value."""
    return [f"{name} {number(params[key])}" for key, name in short_names(params).items()]


def about(trial: FrozenTrial, metrics: Sequence[str]) -> str:
    """A trial's number, objectives and parameters, for a figure's hover."""
    values = [f"{metric_title(name)} {number(value)}" for name, value in zip(metrics, trial.values or [], strict=False)]
    lines = [f"trial {trial.number}, {trial.state.name.lower()}", *values, *named_values(trial.params)]
    return "<br>".join(map(inert, lines))


def interval(low: float | None, high: float | None, sign: str = "") -> str:
    """Both ends of an interval.

    Args:
        low, high: None where there is no interval.
        sign: ``+`` for an interval of differences.
    """
    return NOTHING if low is None or high is None else f"{low:{sign}.4f} to {high:{sign}.4f}"


def change(new: float, old: float) -> str:
    """How far ``new`` is from ``old``, in percent of ``old``; the plain difference when ``old`` is 0."""
    if new == old:
        return "exactly as much as"
    size = f"{abs(new - old) / abs(old) * 100:.1f} %" if old else number(abs(new - old))
    return f"{size} {'above' if new > old else 'below'}"


def count(amount: int, noun: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def listing(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def inert(text: object) -> str:
    """Text from the data, for a figure: plotly reads some tags in labels."""
    return html.escape(str(text), quote=False)
