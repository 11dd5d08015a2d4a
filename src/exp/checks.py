"""What is looked at before a result folder is made and before anything is trained."""

from __future__ import annotations

from src.core.errors import ConfigError
from src.distill.selection_policy import build_policy
from src.exp.door import gather
from src.pipeline.cache import StageCache
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages
from src.student.models import build_student
from src.teacher.llm import check_llm
from src.teacher.prompts import check_titles
from src.teacher.quantise import check_quantise
from src.teacher.selection import budget_rows, build_selector


def check_objective(settings: ExperimentSettings) -> None:
    """Raises ``ConfigError`` for an objective whose teacher the stages cannot label with."""
    if settings.teacher.objective != "item_ce":
        rule = "is trained and evaluated by src.teacher.title, but the stages do not label with it yet"
        raise ConfigError.one("teacher.objective", settings.teacher.objective, rule, "teacher.objective=item_ce")


def check_experiment(settings: ExperimentSettings, teacher: bool) -> Stages:
    """Stages with their data loaded; raises ``ConfigError`` with those of data, device, cache, student and model."""
    stages = Stages(settings, StageCache(settings.runtime.cache, settings.runtime.reuse))

    def student() -> None:
        build_student(settings.student, 2, settings.dataset.window)

    def language_model() -> None:
        if teacher and stages.uses_own_teacher:
            check_objective(settings)
            check_llm(settings.teacher)

    def device() -> None:
        found = stages.device
        if teacher and stages.uses_own_teacher:
            check_quantise(settings.teacher.quantise, found)

    def data() -> None:
        id_map = stages.data.id_map
        if teacher and stages.uses_own_teacher:
            check_titles(id_map)
            budget_rows(settings.teacher.export, len(stages.data.train))

    def given_outputs() -> None:
        if teacher and not stages.uses_own_teacher:
            _ = stages.outputs

    def policy() -> None:
        build_policy(settings.active)

    def selector() -> None:
        if teacher and stages.uses_own_teacher:
            build_selector(settings.teacher.export)

    gather(data, device, stages.cache.check, student, policy, selector, language_model, given_outputs)
    return stages
