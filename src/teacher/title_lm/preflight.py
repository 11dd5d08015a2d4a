"""What of `title_lm` alone can be looked at before anything is trained; its prompts: `src.teacher.preflight`."""

from __future__ import annotations

from dataclasses import replace

from src.core.errors import DataError
from src.data.candidates import draw_candidate_lists
from src.data.examples import SequenceData
from src.teacher.backbone.language_head import check_language_head
from src.teacher.backbone.model_config import blueprint
from src.teacher.settings import TINY, TeacherSettings


def check_writer(settings: TeacherSettings) -> None:
    """Look whether the language model can write; `tiny` can.

    Reads the model's config and the names of its weights, which `check_llm` has found readable. Raises ``ModelError``
    for an encoder and a model without a language-model head.
    """
    if settings.llm != TINY:
        check_language_head(settings.llm, blueprint(settings.llm))


def check_candidates(settings: TeacherSettings, data: SequenceData) -> None:
    """Raises ``DataError`` when the catalogue is too small for some example's candidates; needs the data alone."""
    n, items = settings.title.candidates, data.num_items
    if n > items:
        raise DataError.one("teacher.title.candidates", n, f"exceeds the catalogue's {items} items", "lower it")
    if items < n + data.history_length:
        for examples in (data.train, data.validation):
            try:
                draw_candidate_lists(examples, items, n, seed=0)
            except DataError as error:
                problems = [replace(problem, field="teacher.title.candidates") for problem in error.problems]
                raise DataError(problems) from None
