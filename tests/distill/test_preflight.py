"""Everything about a distillation that can be known to be wrong is said together, before anything is trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from src.core.errors import ConfigError, DataError
from src.data.teacher_outputs import TeacherOutputs
from src.distill.preflight import check_distill_settings
from src.distill.settings import ActiveSettings, DistillSettings
from src.student.models import student_settings
from src.student.settings import NetworkSettings, StudentSettings

NOTHING = DistillSettings(lam=0.0, alpha=0.0, ed_weight=0.0)
ACTIVE = ActiveSettings()


def network(**fields: object) -> NetworkSettings:
    """Settings of a student that can be taught."""
    settings = student_settings("sasrec", width=4, **fields)
    assert isinstance(settings, NetworkSettings)
    return settings


def labels(candidates: int) -> TeacherOutputs:
    """Two labelled rows of so many candidates."""
    listed = np.tile(np.arange(candidates), (2, 1))
    far, nothing = np.zeros((2, candidates), np.float32), np.zeros((2, 0), np.float32)
    return TeacherOutputs(np.arange(2), listed, far, far, nothing, np.zeros((30, 0), np.float32), {})


def problems(
    settings: DistillSettings, active: ActiveSettings = ACTIVE, student: StudentSettings | None = None, given: int = 0
) -> list[str]:
    """The fields of what is found."""
    outputs = (lambda: labels(given)) if given else None
    try:
        check_distill_settings(settings, active, student or network(), lambda: 30, outputs)
    except ConfigError as error:
        return [problem.field for problem in error.problems]
    return []


def test_sound_settings_pass() -> None:
    assert problems(DistillSettings()) == []


def test_each_part_is_looked_at_and_all_is_said_together() -> None:
    settings = replace(NOTHING, lam=0.5, teachers=("lineer",), candidate_topk=4)
    found = problems(settings, ActiveSettings(policy="nowhere:factory"), student_settings("popularity"), given=3)
    assert found == ["active.policy", "distill.teachers", "student.architecture", "distill.candidate_topk"]


def test_a_teacher_of_ones_own_is_a_model_that_is_registered_not_a_factory() -> None:
    assert problems(replace(NOTHING, teachers=("my_teachers:factory",))) == ["distill.teachers"]


def test_a_policy_that_needs_the_whole_ranking_does_not_fit_a_sampled_loss() -> None:
    active, student = ActiveSettings(policy="ground_truth_error"), network(loss="sampled", shared_negatives=8)
    assert problems(replace(NOTHING, lam=0.5), active, student) == ["active.policy"]
    assert problems(NOTHING, active, student) == []


@pytest.mark.parametrize(("lam", "given", "found"), [(0.5, 3, True), (0.5, 4, False), (0.0, 3, False)])
def test_labels_that_are_given_list_as_many_candidates_as_are_distilled(lam: float, given: int, found: bool) -> None:
    settings = replace(NOTHING, lam=lam, candidate_topk=4)
    assert problems(settings, given=given) == (["distill.candidate_topk"] if found else [])


def test_labels_that_cannot_be_read_are_one_of_the_problems() -> None:
    def missing() -> TeacherOutputs:
        raise DataError.one("file", "myrank_train.txt", "is missing")

    with pytest.raises(ConfigError, match=r"lineer[\s\S]*is missing"):
        check_distill_settings(replace(NOTHING, teachers=("lineer",)), ACTIVE, network(), lambda: 30, missing)
