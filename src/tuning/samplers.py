"""Optuna's samplers and pruners by name: ``tuning.sampler`` and ``tuning.pruner``.

Each is one function here, with its name above it; nothing else lists them. ``package.module:factory`` names one of your
own with the same arguments.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from src.core.errors import Problem, ProblemsFound
from src.core.plugins import build_own
from src.core.seed import derive_seed
from src.tuning.search_space import CategoricalParameter, SearchSpace
from src.tuning.settings import TuningSettings

_CMAES_LEAST = 2  # numbers

#: ``make(settings, seed)``: a sampler whose draws follow from the seed and the study alone
MakeSampler = Callable[[TuningSettings, int], BaseSampler]
#: ``make(settings, epochs)``: a pruner, for trials that train so many epochs at most
MakePruner = Callable[[TuningSettings, int], BasePruner]


def nothing_to_say(space: SearchSpace) -> str:
    """What is said about a sampler that can draw from every space."""
    return ""


@dataclass(frozen=True)
class KnownSampler:
    """How a sampler is made, what it cannot do for a space (``note``), and whether it works on one objective alone."""

    make: MakeSampler
    note: Callable[[SearchSpace], str] = nothing_to_say
    single_objective: bool = False


SAMPLERS: dict[str, KnownSampler] = {}
PRUNERS: dict[str, MakePruner] = {}


def sampler(
    name: str, note: Callable[[SearchSpace], str] = nothing_to_say, single_objective: bool = False
) -> Callable[[MakeSampler], MakeSampler]:
    """Make a function known as ``tuning.sampler=<name>``.

    Args:
        name: the setting's value.
        note: says in a sentence what the sampler cannot do for a space; empty where there is nothing to say.
        single_objective: whether searches with several objectives are refused.
    """

    def known(make: MakeSampler) -> MakeSampler:
        SAMPLERS[name] = KnownSampler(make, note, single_objective)
        return make

    return known


def pruner(name: str) -> Callable[[MakePruner], MakePruner]:
    """Make a function known as ``tuning.pruner=<name>``."""

    def known(make: MakePruner) -> MakePruner:
        PRUNERS[name] = make
        return make

    return known


# ------------------------------------------------------------------------------------------------------------ samplers


@sampler("tpe")
def tpe(settings: TuningSettings, seed: int) -> BaseSampler:
    """TPE that models parameters together, with several objectives too, and keeps off what is running.

    Optuna has changed these defaults before, so they are said here. Parameters that every trial has are drawn together,
    those under a condition one by one; ``group=True`` would draw those of one condition together, but is experimental
    and changes nothing where a condition has one parameter, as in the spaces that are shipped.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            n_startup_trials=settings.startup_trials, seed=seed, multivariate=True, group=False, constant_liar=True
        )


@sampler("random")
def at_random(settings: TuningSettings, seed: int) -> BaseSampler:
    """Every parameter on its own, as its scale says."""
    return optuna.samplers.RandomSampler(seed=seed)


@sampler("grid")
def grid(settings: TuningSettings, seed: int) -> BaseSampler:
    """A grid is not sampled: its points are enumerated (`SearchSpace.grid`), and nothing is left to draw."""
    return optuna.samplers.RandomSampler(seed=seed)


def cmaes_note(space: SearchSpace) -> str:
    """CMA-ES moves in the numbers that every trial has, and needs two of them at least: Optuna draws everything else at
    random and does not say so.
    """
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


@sampler("cmaes", note=cmaes_note, single_objective=True)
def cmaes(settings: TuningSettings, seed: int) -> BaseSampler:
    """CMA-ES after some random trials."""
    return optuna.samplers.CmaEsSampler(n_startup_trials=settings.startup_trials, seed=seed)


# ------------------------------------------------------------------------------------------------------------- pruners


def _least(settings: TuningSettings) -> int:
    """Epochs before the first rung."""
    return max(settings.pruner_warmup_epochs, 1)


@pruner("median")
def median(settings: TuningSettings, epochs: int) -> BasePruner:
    """Stop what is worse than the median of the trials before it, at the same epoch."""
    return optuna.pruners.MedianPruner(settings.pruner_startup_trials, settings.pruner_warmup_epochs)


@pruner("asha")
def asha(settings: TuningSettings, epochs: int) -> BasePruner:
    """Optuna's successive halving, which is asynchronous (Li et al., 2018)."""
    return optuna.pruners.SuccessiveHalvingPruner(_least(settings), settings.reduction_factor)


@pruner("hyperband")
def hyperband(settings: TuningSettings, epochs: int) -> BasePruner:
    """Successive halving at several rates."""
    least = _least(settings)
    return optuna.pruners.HyperbandPruner(least, max(epochs, least), settings.reduction_factor)


@pruner("none")
def no_pruner(settings: TuningSettings, epochs: int) -> BasePruner:
    """A pruner that stops nothing."""
    return optuna.pruners.NopPruner()


# ------------------------------------------------------------------------------------------------------------- by name


def make_sampler(settings: TuningSettings, seed: int, number: int) -> BaseSampler:
    """Make a sampler whose draws depend on the study, the seed and the trial's number alone.

    Args:
        settings: which sampler, and its own settings.
        seed: the search's.
        number: the trial's; every trial has a sampler of its own.

    Raises:
        ConfigError: there is no sampler of that name, it cannot be imported, or makes something else.
    """
    name = settings.sampler
    own = derive_seed(seed, "sampler", number) % 2**32
    if name in SAMPLERS:
        return SAMPLERS[name].make(settings, own)
    return build_own("tuning.sampler", name, SAMPLERS, "factory(settings, seed)", BaseSampler, settings, own)


def make_pruner(settings: TuningSettings, epochs: int) -> BasePruner:
    """Make the rule that stops poor trials.

    Args:
        settings: which pruner, and its own settings.
        epochs: what a trial trains at most.

    Raises:
        ConfigError: there is no pruner of that name, it cannot be imported, or makes something else.
    """
    name = settings.pruner
    if name in PRUNERS:
        return PRUNERS[name](settings, epochs)
    return build_own("tuning.pruner", name, PRUNERS, "factory(settings, epochs)", BasePruner, settings, epochs)


def sampler_note(settings: TuningSettings, space: SearchSpace) -> str:
    """What the chosen sampler cannot do for a space, as a sentence; empty where there is nothing to say."""
    known = SAMPLERS.get(settings.sampler)
    return "" if known is None else known.note(space)


def sampling_problems(settings: TuningSettings, space: SearchSpace, path: str) -> list[Problem]:
    """What is wrong with sampler and pruner for a space.

    Args:
        settings: which ones.
        space: what is searched.
        path: the name of the space's document.

    Returns:
        One problem for each that cannot be made, or does not work on as many objectives.
    """
    several = len(space.objectives) > 1
    problems: list[Problem] = []
    for make in (lambda: make_sampler(settings, 0, 0), lambda: make_pruner(settings, 1)):
        try:
            make()
        except ProblemsFound as error:
            problems += error.problems
    if several and settings.pruner != "none":
        rule = f"early stopping needs a single objective; {path} has {', '.join(space.objectives)}"
        problems.append(Problem("tuning.pruner", settings.pruner, rule, "tuning.pruner=none"))
    if several and settings.sampler in SAMPLERS and SAMPLERS[settings.sampler].single_objective:
        problems.append(Problem("tuning.sampler", settings.sampler, "works on one objective", "tuning.sampler=tpe"))
    return problems
