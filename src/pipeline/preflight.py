"""What is looked at before a result folder is made and before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress

from src.core.errors import ProblemsFound, gather
from src.core.logging import get_logger
from src.core.memory import memory_of
from src.distill.preflight import check_distill_settings
from src.distill.teachers import TITLES
from src.pipeline.cache import StageCache
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages
from src.pipeline.tracking import check_tracking
from src.student.least_memory import Task, require_fits
from src.student.models import OwnStudentSettings, build_recommender
from src.student.objectives import resolve_loss
from src.student.settings import NetworkSettings
from src.student.trainer_baseline import require_closed_form_fits

_log = get_logger(__name__)


def check_experiment(settings: ExperimentSettings, teacher: bool, labels_suffice: bool = False) -> Stages:
    """Look for everything that can be known to be wrong before training.

    Args:
        settings: what the run was asked for.
        teacher: whether the run needs a teacher, its own or given outputs.
        labels_suffice: whether it can do without the teacher itself where the teacher's labels are finished.

    Returns:
        Stages with their data loaded.

    Raises:
        ConfigError: the problems of data, device, cache, student, policy and teacher, all together.
    """
    stages = Stages(settings, StageCache(settings.runtime.cache, settings.runtime.reuse))
    own_teacher = teacher and stages.uses_own_teacher

    def data() -> None:
        if isinstance(settings.student, NetworkSettings):
            resolve_loss(settings.student, stages.data.num_items)
        _ = stages.data

    gather(
        data,
        lambda: stages.device,
        stages.cache.check,
        lambda: check_tracking(settings.runtime.tracking),
        lambda: check_sizes(settings, stages, own_teacher),
        lambda: check_distillation(stages) if teacher else None,
        lambda: stages.require_other_priors() if teacher else None,
        lambda: check_own_teacher(stages, labels_suffice) if own_teacher else None,
        lambda: check_titles_alone(stages) if teacher and TITLES in settings.distill.teachers else None,
        lambda: check_titles_alone(stages) if stages.reads_text and not own_teacher else None,
    )
    return stages


def check_sizes(settings: ExperimentSettings, stages: Stages, encoder: bool) -> None:
    """Look at whether the student can be built, and be trained in the memory that there is.

    Args:
        settings: the experiment's, or a trial's.
        stages: the experiment, for its data and device.
        encoder: whether a teacher's own encoder is trained, too.

    Raises:
        ConfigError: a student cannot be built with these sizes, or is too large for this catalogue or this machine.
    """
    task, memory = Task(2, 1, settings.dataset.window), math.inf
    with suppress(ProblemsFound):  # told where the data and the device are looked at
        task = Task(stages.data.num_items, len(stages.data.train), settings.dataset.window)
        memory = memory_of(stages.device)
    require_closed_form_fits(settings.student, task.num_items)
    gather(
        lambda: require_fits(settings.student, task, memory),
        lambda: require_fits(settings.teacher.encoder, task, memory, "teacher.encoder") if encoder else None,
    )
    if isinstance(settings.student, OwnStudentSettings):  # nobody knows what its factory does until it is asked
        build_recommender(settings.student, 2, settings.dataset.window)


def check_trial_priors(stages: Stages) -> None:
    """Look at the priors that trials may have in place of the student's own; raises ``ConfigError``."""
    stages.require_other_priors()
    # who has looked at a teacher has looked at what embeds texts; a model that is gone may never have embedded them
    if stages.reads_text and (stages.llm_is_gone or not stages.uses_own_teacher):
        check_titles_alone(stages)


def check_distillation(stages: Stages) -> None:
    """Look at what is distilled, into whom, and at labels that are given; raises ``ConfigError`` with every problem."""
    settings = stages.settings
    given = (lambda: stages.llm_outputs) if stages.reads_given_outputs else None
    check_distill_settings(settings.distill, settings.active, settings.student, lambda: stages.data.num_items, given)


def check_own_teacher(stages: Stages, labels_suffice: bool) -> None:
    """Look at everything of a run's own teacher; transformers is imported only where a run has one.

    Args:
        stages: the experiment.
        labels_suffice: whether nothing has to be looked at where the language model is gone and all that this run reads
            of it is finished.

    Raises:
        ConfigError: with every problem.
    """
    from src.teacher.preflight import check_teacher_settings

    def read() -> None:
        _ = stages.outputs_record
        _ = stages.title_outputs if stages.reads_embeddings else None

    if not (labels_suffice and _finished_without_model(stages, read)):
        check_teacher_settings(stages.settings.teacher, lambda: stages.data, lambda: stages.device)


def check_titles_alone(stages: Stages) -> None:
    """Look at titles and language model where only these are read; raises ``ConfigError`` with every problem."""
    from src.teacher.preflight import check_teacher_titles

    if not _finished_without_model(stages, lambda: stages.title_outputs):
        check_teacher_titles(stages.settings.teacher, stages.data.id_map)


def _finished_without_model(stages: Stages, read: Callable[[], object]) -> bool:
    """Whether the language model is gone, and what ``read`` asks of the stages lies finished in the cache."""
    if not stages.llm_is_gone:
        return False
    try:
        with stages.cache.finished_only():
            read()
    except ProblemsFound as error:  # what is wrong with data or device is told where these are looked at
        _log.warning("%s, and it is needed: %s", stages.why_gone, error)
        return False
    return True
