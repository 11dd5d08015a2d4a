"""Names, numbers and durations as the report writes them."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from src.evaluation.comparison import ANSWERS

_METRICS = {"ndcg": "NDCG", "recall": "Recall", "hit_ratio": "HitRatio"}
NOTHING = "–"


class Seconds(float):
    """Seconds, shown with one decimal."""


class Difference(float):
    """A difference, shown with its sign."""


def metric_title(name: str) -> str:
    """``ndcg_20`` becomes ``NDCG@20``; a name of another form stays as it is, but for those of a teacher's answers."""
    if name in ANSWERS:
        return ANSWERS[name]
    stem, _, cut_off = name.rpartition("_")
    return f"{_METRICS[stem]}@{cut_off}" if stem in _METRICS and cut_off.isdigit() else name


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
    if isinstance(value, Seconds):
        return f"{value:,.1f}"
    if isinstance(value, Difference):
        return f"{value:+.4f}" if abs(value) < 10 else f"{value:+.4g}"
    if isinstance(value, int) or (abs(value) >= 1000 and math.isfinite(value)):
        return f"{value:,.0f}"
    return f"{value:.4f}" if 0.01 <= abs(value) < 10 else f"{value:.4g}"


def interval(low: float | None, high: float | None, kind: type[float] = float) -> str:
    """Both ends of an interval, written as numbers of a ``kind`` are."""
    return NOTHING if low is None or high is None else f"{number(kind(low))} to {number(kind(high))}"


def duration(seconds: float) -> str:
    """Seconds as the two largest units: ``2 h 05 min``, ``1 min 47 s``, ``8.1 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def change(new: float, old: float) -> str:
    """How far ``new`` is from ``old``, in percent of ``old``; the plain difference when ``old`` is 0."""
    if new == old:
        return "exactly as much as"
    word = "above" if new > old else "below"
    size = f"{abs(new - old) / abs(old) * 100:.1f} %" if old else number(abs(new - old))
    return f"{size} {word}"


def moment(text: object) -> str:
    """A time stamp with a blank between date and time."""
    return str(text).replace("T", " ", 1)


def count(amount: int, noun: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def listing(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def inert(text: object) -> str:
    """Text from the data, for a figure: plotly reads some tags in labels."""
    return html.escape(str(text))


def inert_metric(name: str) -> str:
    """A metric's title, for a figure."""
    return inert(metric_title(name))
