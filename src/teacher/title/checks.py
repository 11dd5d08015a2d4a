"""What of `title_lm` can be looked at before anything is trained, the encoder and the `tiny` model included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from transformers import AutoConfig, AutoTokenizer

from src.core.errors import DataError, gather
from src.data.candidates import draw_candidate_lists
from src.data.examples import SequenceData
from src.teacher.llm import is_decoder
from src.teacher.settings import TINY, TeacherSettings
from src.teacher.tiny_llm import train_tokenizer
from src.teacher.title.language import require_decoder
from src.teacher.title.prompts import TitlePrompts


def check_title_lm(settings: TeacherSettings, data: SequenceData) -> None:
    """Look at candidates, at the kind of language model, and at the room for prompts and answers.

    Reads the model's config and tokenizer, which `check_llm` has found readable. Raises ``ConfigError`` with every
    problem; another objective has none.
    """
    if settings.objective != "title_lm":
        return
    checks: list[Callable[[], None]] = [lambda: check_candidates(settings, data), lambda: _check_room(settings, data)]
    if settings.llm != TINY:
        checks.append(lambda: _check_decoder(settings))
    gather(*checks)


def check_candidates(settings: TeacherSettings, data: SequenceData) -> None:
    """Raises ``DataError`` when the catalogue is too small for some example's candidates; needs the data alone."""
    if settings.objective != "title_lm":
        return
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


def _check_decoder(settings: TeacherSettings) -> None:
    require_decoder(is_decoder(AutoConfig.from_pretrained(settings.llm)), settings.llm)


def _check_room(settings: TeacherSettings, data: SequenceData) -> None:
    context: int | None
    if settings.llm == TINY:
        # its tokenizer comes from the titles alone, in seconds: the same one is made again with the model
        tokenizer, context = train_tokenizer(data.id_map, settings.tiny), settings.tiny.context
    else:
        tokenizer = AutoTokenizer.from_pretrained(settings.llm)
        context = getattr(AutoConfig.from_pretrained(settings.llm), "max_position_embeddings", None)
    TitlePrompts(data.id_map, tokenizer, settings.prompt, settings.title, context)
