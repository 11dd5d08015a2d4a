"""What is looked at before a result folder is made and before anything is trained."""

from __future__ import annotations

from src.core.errors import gather
from src.distill.selection_policy import build_policy, require_policy_fits
from src.distill.settings import check_terms
from src.pipeline.cache import StageCache
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages
from src.student.models import build_recommender, require_network
from src.student.objectives import with_loss
from src.student.settings import NetworkSettings
from src.teacher.checks import check_prompts
from src.teacher.labelling import require_top_n
from src.teacher.llm import check_llm
from src.teacher.prompts import check_titles
from src.teacher.quantise import check_quantise
from src.teacher.selection import budget_rows, build_selector
from src.teacher.tiny_llm import check_tiny
from src.teacher.title.checks import check_candidates, check_writer


def check_experiment(settings: ExperimentSettings, teacher: bool) -> Stages:
    """Stages with their data loaded; raises ``ConfigError`` with those of data, device, cache, student and model."""
    stages = Stages(settings, StageCache(settings.runtime.cache, settings.runtime.reuse))

    def student() -> None:
        build_recommender(settings.student, 2, settings.dataset.window)
        if teacher:
            check_terms(settings.distill, require_network(settings.student))

    def language_model() -> None:
        if teacher and stages.uses_own_teacher:
            check_llm(settings.teacher)
            check_tiny(settings.teacher)
            check_writer(settings.teacher)

    def device() -> None:
        found = stages.device
        if teacher and stages.uses_own_teacher:
            check_quantise(settings.teacher.quantise, found)

    def data() -> None:
        id_map = stages.data.id_map
        if isinstance(settings.student, NetworkSettings):
            student = with_loss(settings.student, id_map.num_items)
            if teacher:
                require_policy_fits(student, settings.distill, settings.active)
        if teacher and stages.uses_own_teacher:
            gather(
                lambda: check_titles(id_map),
                lambda: budget_rows(settings.teacher.export, len(stages.data.train)),
                lambda: require_top_n(settings.teacher.export, id_map.num_items),
                lambda: check_candidates(settings.teacher, stages.data),
            )

    def given_outputs() -> None:
        if teacher and not stages.uses_own_teacher:
            _ = stages.outputs

    def policy() -> None:
        build_policy(settings.active)

    def selector() -> None:
        if teacher and stages.uses_own_teacher:
            build_selector(settings.teacher.export)

    gather(data, device, stages.cache.check, student, policy, selector, language_model, given_outputs)
    if teacher and stages.uses_own_teacher:
        # looks at data and language model together: both are sound by now
        check_prompts(settings.teacher, stages.data)
    return stages
