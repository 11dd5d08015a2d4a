"""Optuna's samplers and pruners by name."""

from __future__ import annotations

import optuna

from src.core.seed import derive_seed
from src.tuning.settings import TuningSettings


def make_sampler(settings: TuningSettings, seed: int, number: int) -> optuna.samplers.BaseSampler:
    """A sampler whose draws depend on the study, the seed and the trial's number alone.

    A grid is not sampled: its points are enumerated (`SearchSpace.grid`).
    """
    own = derive_seed(seed, "sampler", number) % 2**32
    match settings.sampler:
        case "tpe":
            return optuna.samplers.TPESampler(n_startup_trials=settings.startup_trials, seed=own)
        case "cmaes":
            return optuna.samplers.CmaEsSampler(n_startup_trials=settings.startup_trials, seed=own)
        case _:
            return optuna.samplers.RandomSampler(seed=own)


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
