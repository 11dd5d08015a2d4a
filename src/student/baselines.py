"""The models in closed form that every comparison shows, each at the best of a few settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass as settings_dataclass

from src.core.settings import STRICT
from src.core.training import FitResult
from src.student.base import Recommender
from src.student.datamodule import StudentData
from src.student.models import architecture, student_settings
from src.student.settings import EvaluationSettings, StudentSettings
from src.student.trainer_baseline import fit_closed_form


@settings_dataclass(frozen=True, config=STRICT)
class BaselineSettings:
    """Which models without gradient descent stand in every table, and how much is spent on each."""

    models: Annotated[
        tuple[str, ...], Field(description="models in closed form; popularity, transitions, ease, linear")
    ] = ("popularity", "transitions", "ease", "linear")
    trials: Annotated[
        int, Field(ge=1, le=50, description="settings tried for each of them, chosen on validation; 1: the default")
    ] = 8


@dataclass(frozen=True, eq=False)
class TunedBaseline:
    """A model in closed form at the best of its tried settings. ``tried`` tells each one's fields and value."""

    settings: StudentSettings
    model: Recommender
    fit: FitResult
    tried: list[dict[str, Any]]


def tune_baseline(name: str, trials: int, evaluation: EvaluationSettings, data: StudentData) -> TunedBaseline:
    """Fit a model in closed form with a few settings and keep the best by validation NDCG at the largest cut-off.

    Args:
        name: its architecture.
        trials: how many of its `ClosedForm.settings_to_try` are tried.
        evaluation: cut-offs and masking.
        data: the training rows to fit, the validation rows to choose by.

    Raises:
        ConfigError: the architecture does not exist, or the catalogue is too large for it.
    """
    kind = architecture(name)
    metric = f"ndcg_{max(evaluation.ks)}"
    best: TunedBaseline | None = None
    tried: list[dict[str, Any]] = []
    listed: tuple[dict[str, Any], ...] = getattr(kind.build, "settings_to_try", ({},))
    for fields in listed[:trials]:
        settings = student_settings(name, **fields)
        run = fit_closed_form(settings, evaluation, data)
        value = run.fit.best_metrics[metric]
        tried.append({**fields, metric: value})
        if best is None or value > best.fit.best_metrics[metric]:
            best = TunedBaseline(settings, run.student, run.fit, tried)
    assert best is not None
    return best
