"""The tables of a result folder, read again."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from src.core.errors import ArtefactError

_COMPARISON = ("model", "split", "trials", "examples")
_SEGMENTS = ("by", "segment", "examples", "model", "gain", "low", "high", "split")


def read_comparison(path: Path) -> pd.DataFrame:
    """`comparison.csv`, of `src.evaluation.comparison.as_frame`; raises ``ArtefactError`` for another table."""
    return _read(path, _COMPARISON)


def read_segments(path: Path) -> pd.DataFrame:
    """`segments.csv`, of `src.evaluation.segments.segments_frame`; raises ``ArtefactError`` for another table."""
    return _read(path, _SEGMENTS)


def _read(path: Path, columns: Collection[str]) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path)
    except (ValueError, OSError) as error:  # pandas' own errors and undecodable text are of these
        raise ArtefactError.one("file", str(path), f"is no table ({error})") from None
    if missing := set(columns) - set(frame.columns):
        raise ArtefactError.one("file", str(path), f"lacks the columns {', '.join(sorted(missing))}")
    return frame
