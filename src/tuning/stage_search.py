"""What the searches over student, teacher and distillation share: how they begin, and what one search leaves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from src.core.errors import ConfigError
from src.core.paths import MANIFEST
from src.core.result_files import SPACE_FILE
from src.data.examples import already_open, openings
from src.data.teacher_outputs import OutputsByTeachers
from src.pipeline.run_folder import RunFolder
from src.pipeline.runs import describe_data, tracker_of
from src.pipeline.stages import Stages
from src.tuning.preflight import PreparedSearch, space_document
from src.tuning.report import write_outcomes, write_trials_table
from src.tuning.search import SearchOutcome, first_trials, run_search
from src.tuning.search_settings import SearchSettings

#: which command trains the winner of each stage once more
REPLAY_WITH = {"distill": "run_distill", "student": "run_student_baseline", "teacher": "run_teacher"}


@contextmanager
def alone_with_baseline(settings: SearchSettings, stages: Stages, folder: RunFolder, document: str) -> Iterator[None]:
    """The frame of every search: this process alone works in the folder; data and baseline are there.

    What a finished folder says is set aside, and the search space is kept beside it.

    Args:
        settings: what the command was asked for.
        stages: the experiment.
        folder: the result folder.
        document: the stage's own search space in `search_spaces/`, where the settings name none.

    Raises:
        ConfigError: the search's test split was opened and more is asked; before anything is trained.
    """
    with folder.alone():
        if (folder.path / MANIFEST).exists() and openings(folder.test_record) and not settings.reopen_test:
            raise ConfigError([already_open(folder.test_record)])
        folder.begin_again()
        if not (folder.path / SPACE_FILE).exists():
            shutil.copyfile(space_document(settings.tuning, document), folder.path / SPACE_FILE)
        describe_data(stages)
        _ = stages.baseline
        yield


def search_and_publish(
    settings: SearchSettings, prepared: PreparedSearch, folder: RunFolder, outputs: OutputsByTeachers, name: str
) -> SearchOutcome:
    """The single search of a stage: the winner's model (as ``name``) and keys, the trials table, the curves."""
    stages, space = prepared.stages, prepared.space
    first = first_trials(settings, stages.settings, space)
    with run_search(settings, stages, space, first, outputs, folder.path) as outcome:
        folder.copy_folder(outcome.model_folder, name)
    folder.write_best_params(outcome.settings, REPLAY_WITH[space.stage])
    write_trials_table(folder.path, [outcome.search])
    write_outcomes(tracker_of(stages, folder), outcome.search.record)
    folder.stopwatch.add("search_time", outcome.seconds)
    return outcome
