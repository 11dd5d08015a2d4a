"""Whether a language model can be used: its config, tokenizer, weight files and layer names, before it is loaded."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from src.core.errors import ConfigError, ModelError, Problem, ProblemsFound, first_line
from src.teacher.backbone.gated_lora import inject, require_checkpointing
from src.teacher.backbone.llm import require_whole
from src.teacher.backbone.model_config import (
    blueprint,
    compare_with_files,
    context_of,
    read_model_config,
    read_tokenizer,
)
from src.teacher.backbone.model_files import WEIGHT_FILES, check_folder, weight_files
from src.teacher.backbone.quantisation import check_stored_form, stored_form
from src.teacher.backbone.transformers_calls import FIELD, explained, is_local
from src.teacher.settings import NOT_QUANTISED, TINY, TeacherSettings


def check_llm(settings: TeacherSettings) -> None:
    """Look at config, tokenizer, weight files and layer names without loading the model.

    Raises ``ModelError`` with every problem found. `tiny` is built later and needs no look.
    """
    name = settings.llm
    if name == TINY:
        return
    problems: list[Problem] = []
    if is_local(name) and not Path(name).is_dir():
        raise ModelError.one(FIELD, name, "no such folder", "name a model's folder, a hub id, or tiny")
    if is_local(name):
        check_folder(Path(name))
    for check in (_check_config, _check_tokenizer, _check_weights):
        try:
            check(name, settings)
        except ProblemsFound as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise ModelError(problems)


def _check_config(name: str, settings: TeacherSettings) -> None:
    config = read_model_config(name)
    check_stored_form(name, config, settings.quantise)
    empty = blueprint(name)
    longest = context_of(empty)
    if longest is not None and settings.prompt.max_tokens > longest:
        raise ConfigError.one(
            "teacher.prompt.max_tokens",
            settings.prompt.max_tokens,
            f"{name} reads {longest} tokens at most",
            "lower it",
        )
    if settings.gradient_checkpointing:
        require_checkpointing(empty)
    try:
        inject(empty, settings.lora)
    except ValueError as error:
        names = ",".join(settings.lora.target_modules)
        rule = f"PEFT cannot adapt these layers of {empty.config.model_type} ({first_line(error)})"
        step = "name linear layers that it can, or use a model of another family"
        raise ModelError.one("teacher.lora.target_modules", names, rule, step) from error


def _check_tokenizer(name: str, settings: TeacherSettings) -> None:
    read_tokenizer(name)


def _check_weights(name: str, settings: TeacherSettings) -> None:
    if not is_local(name):
        return
    files = weight_files(Path(name))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        rule = f"weights are missing ({', '.join(missing[:3]) or ' or '.join(WEIGHT_FILES[:3])})"
        raise ModelError.one(FIELD, name, rule, "copy the model again")
    for file in files:
        if file.suffix == ".safetensors":
            with explained(name, f"{file.name}"), safe_open(file, framework="pt") as handle:
                handle.keys()
    config = read_model_config(name)
    if stored_form(config) == NOT_QUANTISED:
        require_whole(name, compare_with_files(name, config)[0])
