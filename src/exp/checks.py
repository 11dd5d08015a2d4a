"""What is looked at before a result folder is made and before anything is trained."""

from __future__ import annotations

from src.core.errors import gather
from src.distill.selection_policy import build_policy
from src.pipeline.cache import StageCache
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages
from src.student.models import build_student
from src.teacher.checks import check_prompts
from src.teacher.labelling import require_top_n
from src.teacher.llm import check_llm
from src.teacher.objective import objective_of
from src.teacher.prompts import check_titles
from src.teacher.quantise import check_quantise
from src.teacher.selection import budget_rows, build_selector
from src.teacher.tiny_llm import check_tiny


def check_experiment(settings: ExperimentSettings, teacher: bool) -> Stages:
    """Stages with their data loaded; raises ``ConfigError`` with those of data, device, cache, student and model."""
    stages = Stages(settings, StageCache(settings.runtime.cache, settings.runtime.reuse))

    def student() -> None:
        build_student(settings.student, 2, settings.dataset.window)

    def language_model() -> None:
        if teacher and stages.uses_own_teacher:
            check_llm(settings.teacher)
            check_tiny(settings.teacher)
            objective_of(settings.teacher.objective).check_llm(settings.teacher)

    def device() -> None:
        found = stages.device
        if teacher and stages.uses_own_teacher:
            check_quantise(settings.teacher.quantise, found)

    def data() -> None:
        id_map = stages.data.id_map
        if teacher and stages.uses_own_teacher:
            gather(
                lambda: check_titles(id_map),
                lambda: budget_rows(settings.teacher.export, len(stages.data.train)),
                lambda: require_top_n(settings.teacher.export, id_map.num_items),
                lambda: objective_of(settings.teacher.objective).check_data(settings.teacher, stages.data),
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
