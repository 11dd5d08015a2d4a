"""What of titles, tokenizer and language model together can be looked at before anything, `tiny` too, is trained."""

from __future__ import annotations

from src.core.errors import gather
from src.data.examples import SequenceData
from src.teacher.backbone.llm import blueprint, context_of, read_tokenizer, table_shape
from src.teacher.backbone.tiny_llm import pretraining_prompts, train_tokenizer
from src.teacher.factory import prompts_of
from src.teacher.operations.dry_run import rehearse_early
from src.teacher.settings import TINY, TeacherSettings


def check_prompts(settings: TeacherSettings, data: SequenceData) -> None:
    """Make the prompts that training will make, and those that pretrain `tiny`.

    Reads the model's config and tokenizer, which `check_llm` has found readable. Raises ``ConfigError`` with every
    problem: prompts, titles or answers that do not fit, titles that the tokenizer turns into nothing.
    """
    if settings.llm == TINY:
        # its tokenizer comes from the titles alone, in seconds: the same one is made again with the model
        tokenizer = train_tokenizer(data.id_map, settings.tiny)
        gather(
            lambda: pretraining_prompts(data, tokenizer, settings.tiny),
            lambda: prompts_of(settings, data.id_map, tokenizer, settings.tiny.context),
        )
        return
    tokenizer, empty = read_tokenizer(settings.llm), blueprint(settings.llm)
    gather(lambda: prompts_of(settings, data.id_map, tokenizer, context_of(empty)).fit(table_shape(empty)[0]))
    gather(lambda: rehearse_early(settings, data))
