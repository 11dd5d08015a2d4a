"""What can be known to be wrong with a teacher before anything, `tiny` too, is trained: one function."""

from __future__ import annotations

from collections.abc import Callable

import torch

from src.core.errors import gather
from src.data.examples import SequenceData
from src.data.id_map import IdMap
from src.teacher.backbone.model_check import check_llm
from src.teacher.backbone.model_config import blueprint, context_of, read_tokenizer, table_shape
from src.teacher.backbone.quantisation import check_quantise
from src.teacher.backbone.tiny_llm import check_tiny, pretraining_prompts, train_tokenizer
from src.teacher.labelling.labels import require_top_n
from src.teacher.labelling.selection import budget_rows, build_selector
from src.teacher.objective import objective_of
from src.teacher.operations.dry_run import dry_run_before_training
from src.teacher.prompts import check_titles
from src.teacher.settings import TINY, TeacherSettings


def check_teacher_settings(
    settings: TeacherSettings, data: Callable[[], SequenceData], device: Callable[[], torch.device]
) -> None:
    """Look at the language model, the titles, what is to be labelled and the device; then at how they fit together.

    Args:
        settings: the teacher's.
        data: gives the dataset, split; what it raises is one of the problems.
        device: gives the device of the run; likewise.

    Raises:
        ConfigError: with every problem. What needs several sound parts is looked at once these are sound.
    """
    gather(
        lambda: _check_data(settings, data()),
        lambda: check_quantise(settings.quantise, device()),
        lambda: build_selector(settings.export),
        lambda: _check_language_model(settings),
    )
    check_prompts(settings, data())


def check_teacher_titles(settings: TeacherSettings, id_map: IdMap) -> None:
    """Look at the language model and the titles where only the embeddings of titles are read.

    Raises:
        ConfigError: with every problem.
    """
    gather(lambda: check_titles(id_map), lambda: check_llm(settings), lambda: check_tiny(settings))


def _check_data(settings: TeacherSettings, data: SequenceData) -> None:
    gather(
        lambda: check_titles(data.id_map),
        lambda: budget_rows(settings.export, len(data.train)),
        lambda: require_top_n(settings.export, data.id_map.num_items),
        lambda: objective_of(settings.objective).check_data(settings, data),
    )


def _check_language_model(settings: TeacherSettings) -> None:
    check_llm(settings)
    check_tiny(settings)
    objective_of(settings.objective).check_llm(settings)


def check_prompts(settings: TeacherSettings, data: SequenceData) -> None:
    """Make the prompts that training will make, and those that pretrain `tiny`.

    Reads the model's config and tokenizer, which `check_llm` has found readable.

    Args:
        settings: the teacher's.
        data: the dataset, split.

    Raises:
        ConfigError: with every problem: prompts, titles or answers that do not fit, titles that the tokenizer turns
            into nothing, a model that two rows cannot be passed through.
    """
    objective = objective_of(settings.objective)
    if settings.llm == TINY:
        # its tokenizer comes from the titles alone, in seconds: the same one is made again with the model
        tokenizer = train_tokenizer(data.id_map, settings.tiny)
        gather(
            lambda: pretraining_prompts(data, tokenizer, settings.tiny),
            lambda: objective.prompts(settings, data.id_map, tokenizer, settings.tiny.context),
        )
        return
    tokenizer, empty = read_tokenizer(settings.llm), blueprint(settings.llm)
    gather(
        lambda: objective.prompts(settings, data.id_map, tokenizer, context_of(empty)).require_rows(
            table_shape(empty)[0]
        )
    )
    gather(lambda: dry_run_before_training(settings, data))
