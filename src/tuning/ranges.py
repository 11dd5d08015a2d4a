"""Whether Optuna can draw from a range of numbers, found out before anything is trained."""

from __future__ import annotations

import math
import warnings

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import create_trial

from src.core.errors import first_line

#: whole numbers up to here have a float of their own; samplers compute in floats
_EXACT = 2**53
_FINEST = 10**9


def range_problem(low: float, high: float, log: bool, step: float | None, whole: bool) -> tuple[str, str] | None:
    """The rule that a range breaks and what to do about it; None for a range that every sampler can draw from.

    Args:
        low: the lower bound, not above ``high``; above 0 where ``log``.
        high: the upper bound.
        log: whether it is drawn evenly in its logarithm.
        step: the distance of its values, None where it has no grid.
        whole: whether its values are whole numbers.
    """
    if whole and (low < -_EXACT or high > _EXACT):
        return f"whole numbers must lie between -{_EXACT} and {_EXACT}, where floats hold them exactly", "narrow it"
    if not math.isfinite(float(high) - float(low)):
        return "the distance of its bounds is no finite number", "narrow it, or use log: true"
    if step is not None and not whole and (high - low) / step > _FINEST:
        return f"a step this fine makes more than {_FINEST:,} points", "leave step out, or make it larger"
    failure = _draw(low, high, log, step, whole)
    return None if failure is None else (f"Optuna cannot draw from it ({failure})", "narrow it")


def _draw(low: float, high: float, log: bool, step: float | None, whole: bool) -> str | None:
    """Draw once at random, and once after both ends are known; returns what goes wrong."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would announce each study that is made here
    try:
        distribution = (
            IntDistribution(int(low), int(high), log, int(step or 1))
            if whole
            else FloatDistribution(low, high, log, step)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(sampler=optuna.samplers.TPESampler(n_startup_trials=3, seed=0))
            for value, end in enumerate((low, high)):
                study.add_trial(create_trial(params={"x": end}, distributions={"x": distribution}, value=float(value)))
            for _ in range(2):
                trial = study.ask({"x": distribution})
                study.tell(trial, 0.5)
                if not low <= trial.params["x"] <= high:
                    return f"it gives {trial.params['x']}"
    except (ValueError, ArithmeticError, IndexError, MemoryError) as error:
        return first_line(error)
    return None
