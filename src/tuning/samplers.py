"""Optuna's samplers and pruners by name."""

from __future__ import annotations

import warnings

import optuna

from src.core.seed import derive_seed
from src.tuning.search_space import CategoricalParameter, SearchSpace
from src.tuning.settings import TuningSettings

_CMAES_LEAST = 2  # numbers


def make_sampler(settings: TuningSettings, seed: int, number: int) -> optuna.samplers.BaseSampler:
    """A sampler whose draws depend on the study, the seed and the trial's number alone.

    A grid is not sampled: its points are enumerated (`SearchSpace.grid`).
    """
    own = derive_seed(seed, "sampler", number) % 2**32
    match settings.sampler:
        case "tpe":
            return _tpe(settings.startup_trials, own)
        case "cmaes":
            return optuna.samplers.CmaEsSampler(n_startup_trials=settings.startup_trials, seed=own)
        case _:
            return optuna.samplers.RandomSampler(seed=own)


def _tpe(startup_trials: int, seed: int) -> optuna.samplers.TPESampler:
    """TPE that models parameters together, with several objectives too, and keeps off what is running.

    Optuna has changed these defaults before, so they are said here. Parameters that every trial has are drawn together,
    those under a condition one by one; ``group=True`` would draw those of one condition together, but is experimental
    and changes nothing where a condition has one parameter, as in the spaces that are shipped.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            n_startup_trials=startup_trials, seed=seed, multivariate=True, group=False, constant_liar=True
        )


def sampler_note(settings: TuningSettings, space: SearchSpace) -> str:
    """What the chosen sampler cannot do for a space, as a sentence; empty where there is nothing to say.

    CMA-ES moves in the numbers that every trial has, and needs two of them at least: Optuna draws everything else at
    random and does not say so.
    """
    if settings.sampler != "cmaes":
        return ""
    why = {key: reason for key in space.parameters if (reason := _outside_cmaes(space, key))}
    proposed = [key for key in space.parameters if key not in why]
    if len(proposed) < _CMAES_LEAST:
        why |= dict.fromkeys(proposed, "the only number")
    if not why:
        return ""
    random = ", ".join(f"{key} ({why[key]})" for key in space.parameters if key in why)
    if len(why) == len(space.parameters):
        rule = f"CMA-ES cannot propose anything here, all is drawn at random: {random}"
        return f"{rule}; it needs at least {_CMAES_LEAST} numbers that every trial has → tuning.sampler=tpe"
    return f"CMA-ES cannot propose, and draws at random: {random}; tuning.sampler=tpe models these, too"


def _outside_cmaes(space: SearchSpace, key: str) -> str:
    parameter = space.parameters[key]
    if isinstance(parameter, CategoricalParameter):
        return "categories"
    if parameter.when:
        return "not in every trial"
    return "a single value" if parameter.low == parameter.high else ""


def make_pruner(settings: TuningSettings, epochs: int) -> optuna.pruners.BasePruner:
    """Optuna's rule that stops poor trials; ``epochs`` is what a trial trains at most.

    `asha` is Optuna's successive halving, which is asynchronous (Li et al., 2018).
    """
    least = max(settings.pruner_warmup_epochs, 1)
    match settings.pruner:
        case "median":
            return optuna.pruners.MedianPruner(settings.pruner_startup_trials, settings.pruner_warmup_epochs)
        case "asha":
            return optuna.pruners.SuccessiveHalvingPruner(least, settings.reduction_factor)
        case "hyperband":
            return optuna.pruners.HyperbandPruner(least, max(epochs, least), settings.reduction_factor)
        case _:
            return optuna.pruners.NopPruner()
