"""What is looked at before a result folder is made and before anything is trained."""

from __future__ import annotations

import torch

from src.core.errors import gather
from src.data.examples import SequenceData
from src.distill.selection_policy import build_policy, require_policy_fits
from src.distill.settings import check_terms
from src.distill.teachers import TITLES
from src.pipeline.cache import StageCache
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages
from src.student.models import build_recommender, require_network
from src.student.objectives import with_loss
from src.student.settings import NetworkSettings
from src.teacher.settings import TeacherSettings


def check_experiment(settings: ExperimentSettings, teacher: bool) -> Stages:
    """Look for everything that can be known to be wrong before training.

    Args:
        settings: what the run was asked for.
        teacher: whether the run needs a teacher, its own or given outputs.

    Returns:
        Stages with their data loaded.

    Raises:
        ConfigError: the problems of data, device, cache, student, policy and teacher, all together.
    """
    stages = Stages(settings, StageCache(settings.runtime.cache, settings.runtime.reuse))
    own_teacher = teacher and stages.uses_own_teacher

    def data() -> None:
        if isinstance(settings.student, NetworkSettings):
            student = with_loss(settings.student, stages.data.num_items)
            if teacher:
                require_policy_fits(student, settings.distill, settings.active)
        if own_teacher:
            check_labels(settings.teacher, stages.data)
        else:
            _ = stages.data

    def device() -> None:
        if own_teacher:
            check_device(settings.teacher, stages.device)
        else:
            _ = stages.device

    gather(
        data,
        device,
        stages.cache.check,
        lambda: build_recommender(settings.student, 2, settings.dataset.window),
        lambda: check_terms(settings.distill, require_network(settings.student)) if teacher else None,
        lambda: build_policy(settings.active),
        lambda: check_teacher(settings.teacher) if own_teacher else None,
        lambda: stages.llm_outputs if teacher and stages.reads_given_outputs else None,
        lambda: check_titles_alone(stages) if teacher and TITLES in settings.distill.teachers else None,
        lambda: check_titles_alone(stages) if stages.reads_text and not own_teacher else None,
    )
    if own_teacher:
        from src.teacher.checks import check_prompts

        # looks at data and language model together: both are sound by now
        check_prompts(settings.teacher, stages.data)
    return stages


# ------------------------------------------------------------------------------------------------------- the teacher
# transformers is imported only where a run has a teacher of its own


def check_titles_alone(stages: Stages) -> None:
    """Look at titles and language model where only these are read; raises ``ConfigError`` with every problem."""
    from src.teacher.title_embeddings import check_title_embeddings

    check_title_embeddings(stages.settings.teacher, stages.data.id_map)


def check_teacher(settings: TeacherSettings) -> None:
    """Look at the selector and the language model; raises ``ConfigError`` with every problem."""
    from src.teacher.llm import check_llm
    from src.teacher.objective import objective_of
    from src.teacher.selection import build_selector
    from src.teacher.tiny_llm import check_tiny

    def language_model() -> None:
        check_llm(settings)
        check_tiny(settings)
        objective_of(settings.objective).check_llm(settings)

    gather(lambda: build_selector(settings.export), language_model)


def check_labels(settings: TeacherSettings, data: SequenceData) -> None:
    """Look at titles, candidates and what is to be labelled; raises ``ConfigError`` with every problem."""
    from src.teacher.labelling import require_top_n
    from src.teacher.objective import objective_of
    from src.teacher.prompts import check_titles
    from src.teacher.selection import budget_rows

    gather(
        lambda: check_titles(data.id_map),
        lambda: budget_rows(settings.export, len(data.train)),
        lambda: require_top_n(settings.export, data.id_map.num_items),
        lambda: objective_of(settings.objective).check_data(settings, data),
    )


def check_device(settings: TeacherSettings, device: torch.device) -> None:
    """Look at whether the device can hold the language model as it is quantised; raises ``ConfigError``."""
    from src.teacher.quantise import check_quantise

    check_quantise(settings.quantise, device)
