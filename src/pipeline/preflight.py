"""What is looked at before a result folder is made and before anything is trained."""

from __future__ import annotations

from src.core.errors import gather
from src.distill.selection_policy import build_policy, require_policy_fits
from src.distill.settings import check_terms
from src.distill.teachers import TITLES
from src.pipeline.cache import StageCache
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages
from src.pipeline.tracking import check_tracking
from src.student.models import build_recommender, require_network, student_settings
from src.student.objectives import with_loss
from src.student.prior import require_prior_fits
from src.student.settings import NetworkSettings
from src.teacher.settings import TeacherSettings


def check_experiment(settings: ExperimentSettings, teacher: bool, trial_priors: tuple[str, ...] = ()) -> Stages:
    """Look for everything that can be known to be wrong before training.

    Args:
        settings: what the run was asked for.
        teacher: whether the run needs a teacher, its own or given outputs.
        trial_priors: priors that trials of a search may have in place of the student's own.

    Returns:
        Stages with their data loaded.

    Raises:
        ConfigError: the problems of data, device, cache, student, policy and teacher, all together.
    """
    stages = Stages(settings, StageCache(settings.runtime.cache, settings.runtime.reuse), trial_priors)
    own_teacher = teacher and stages.uses_own_teacher

    def data() -> None:
        if isinstance(settings.student, NetworkSettings):
            student = with_loss(settings.student, stages.data.num_items)
            if teacher:
                require_policy_fits(student, settings.distill, settings.active)
                for name in stages.other_prior_names:
                    require_prior_fits(len(stages.data.train), student_settings(name), stages.data.num_items)
        _ = stages.data

    gather(
        data,
        lambda: stages.device,
        stages.cache.check,
        lambda: check_tracking(settings.runtime.tracking),
        lambda: build_recommender(settings.student, 2, settings.dataset.window),
        lambda: check_terms(settings.distill, require_network(settings.student)) if teacher else None,
        lambda: build_policy(settings.active),
        lambda: check_teacher(settings.teacher, stages) if own_teacher else None,
        lambda: stages.llm_outputs if teacher and stages.reads_given_outputs else None,
        lambda: check_titles_alone(stages) if teacher and TITLES in settings.distill.teachers else None,
        lambda: check_titles_alone(stages) if stages.reads_text and not own_teacher else None,
    )
    return stages


def check_teacher(settings: TeacherSettings, stages: Stages) -> None:
    """Look at everything of a run's own teacher; transformers is imported only where a run has one.

    Raises:
        ConfigError: with every problem.
    """
    from src.teacher.preflight import preflight

    preflight(settings, lambda: stages.data, lambda: stages.device)


def check_titles_alone(stages: Stages) -> None:
    """Look at titles and language model where only these are read; raises ``ConfigError`` with every problem."""
    from src.teacher.preflight import preflight_titles

    preflight_titles(stages.settings.teacher, stages.data.id_map)
