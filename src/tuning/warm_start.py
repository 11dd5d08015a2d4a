"""`warm_start`: what an earlier search found, as the first points of this one."""

from __future__ import annotations

from pathlib import Path

import optuna

from src.core.errors import ArtefactError
from src.core.result_files import JOURNAL
from src.tuning.journal import read_journal
from src.tuning.search_space import SearchSpace, Value
from src.tuning.study import SEARCH, ranked
from src.tuning.trial_values import fitting


def warm_trials(folder: Path, space: SearchSpace, count: int) -> list[dict[str, Value]]:
    """The best trials of an earlier result as points of this space, best first.

    Args:
        folder: the earlier result.
        space: what is searched now.
        count: how many at most.

    Raises:
        ArtefactError: the folder holds no study, or none of its parameters is searched here.
    """
    journal = folder / JOURNAL
    if not journal.is_file():
        step = "name the result folder of a search"
        raise ArtefactError.one("warm_start", str(folder), f"holds no {JOURNAL}", step)
    backend = read_journal(journal)
    try:
        studies = optuna.get_all_study_names(backend)
        study = optuna.load_study(study_name=SEARCH if SEARCH in studies else "everything", storage=backend)
    except (KeyError, ValueError) as error:
        raise ArtefactError.one("warm_start", str(folder), f"its study cannot be read ({error})") from None
    points = [point for trial in ranked(study) if (point := fitting(space, trial.params)) is not None]
    if not points:
        rule = f"none of its completed trials has a parameter of this search: {', '.join(space.parameters)}"
        raise ArtefactError.one("warm_start", str(folder), rule)
    return points[:count]
