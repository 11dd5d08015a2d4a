"""What a model in closed form costs, before it is computed: its time grows with the third power of the items that
training rows have met, its memory with the square of the catalogue.

The rates are those of one core of the machine of `docs/benchmarks.md`, halved: an estimate decides the same on every
machine, so that a search that goes on elsewhere has the student that it began with.
"""

from __future__ import annotations

from dataclasses import dataclass

#: float64 operations a second of a factorisation and its solution (measured: 47e9)
_SOLVED = 20e9
#: numbers a second that are added up for scores (measured: 7e9), and of which a scale is found (measured: 1.6e8)
_ADDED, _READ = 3.5e9, 0.8e8
#: matrices [V, V] of 8 bytes that are held at once: two sums, what is left of them, the factor, the solution
_MATRICES = 5
#: of a scale: the rows that it is found on, and how often they are looked at
SCALE_ROWS, _LOOKS = 20_000, 16


@dataclass(frozen=True)
class FitCost:
    """Seconds of one core, and bytes at once."""

    seconds: float
    memory: float

    def __str__(self) -> str:
        return f"about {self.seconds / 60:.1f} minutes of one core and {self.memory / 2**30:.1f} GB"


def fit_cost(num_items: int, met: int) -> FitCost:
    """The cost of one fit of a model with a weight for each pair of items.

    Args:
        num_items: V.
        met: how many items are in the histories.
    """
    return FitCost((1 / 3 + 2) * met**3 / _SOLVED, _MATRICES * 8 * num_items**2)


def prior_cost(num_items: int, met: int, rows: int, window: int, folds: int) -> FitCost:
    """The cost of a prior: a fit for each fold and one for use, and the scores of every training row.

    Everybody's sums stay beside those of a fold, and the folds' models beside each other.

    Args:
        num_items: V.
        met: how many items are in the histories.
        rows: N, of the training split.
        window: items of history that the model reads.
        folds: parts of the users.
    """
    one = fit_cost(num_items, met)
    scored = rows * min(window, 100) * num_items / _ADDED
    scaled = min(rows, SCALE_ROWS) * num_items * _LOOKS / _READ
    return FitCost(
        (folds + 1) * one.seconds + scored + scaled,
        one.memory + (2 * 8 + 4 * folds) * num_items**2 + 2 * rows * num_items,
    )
