"""The tables of a result folder, read again."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pandas as pd
from pandas.api.types import is_numeric_dtype

from src.core.errors import ArtefactError

_COMPARISON = ("model", "split", "trials", "examples")
_SEGMENTS = ("by", "segment", "examples", "model", "gain", "low", "high", "split")
#: every other column holds numbers
_TEXTS = ("model", "split", "missing", "by", "segment", "against", "resampled")


def read_comparison(path: Path) -> pd.DataFrame:
    """`comparison.csv`, of `src.evaluation.comparison.as_frame`; raises ``ArtefactError`` for another table."""
    return _read(path, _COMPARISON)


def read_segments(path: Path) -> pd.DataFrame:
    """`segments.csv`, of `src.evaluation.segments.segments_frame`; raises ``ArtefactError`` for another table."""
    frame = _read(path, _SEGMENTS)
    if not any(str(name).startswith("ndcg_") for name in frame.columns):
        raise ArtefactError.one("file", str(path), "lacks a column ndcg_K")
    if frame.duplicated(["by", "segment", "model", "split"]).any():
        raise ArtefactError.one("file", str(path), "has a model's line of a segment twice")
    return frame


def _read(path: Path, columns: Collection[str]) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path)
    except (ValueError, OSError) as error:  # pandas' own errors and undecodable text are of these
        raise ArtefactError.one("file", str(path), f"is no table ({error})") from None
    if missing := set(columns) - set(frame.columns):
        raise ArtefactError.one("file", str(path), f"lacks the columns {', '.join(sorted(missing))}")
    for name in frame.columns.difference(_TEXTS):
        if len(frame) and not is_numeric_dtype(frame[name]):
            raise ArtefactError.one("file", str(path), f"has text in the column {name}, which holds numbers")
    return frame
