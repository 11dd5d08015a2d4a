"""What a run says before a weight is read: what it will need, and what becomes of long titles."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from src.core.logging import get_logger
from src.core.memory import gigabytes
from src.data.candidates import CandidateLists
from src.data.examples import Examples
from src.data.id_map import IdMap
from src.data.tensor_examples import TensorExamples
from src.teacher.backbone.llm import computing_type
from src.teacher.backbone.model_config import blueprint, context_of, read_tokenizer
from src.teacher.objective import objective_of
from src.teacher.operations.model_shape import model_shape
from src.teacher.operations.resource_estimate import (
    ResourceEstimate,
    estimate_resources,
    estimate_sentence,
    need_in_short,
    weight_format,
    workload_of,
)
from src.teacher.prompts import TruncatedTitles
from src.teacher.settings import TeacherSettings

_log = get_logger(__name__)


def report_estimate(
    settings: TeacherSettings,
    llm: str,
    id_map: IdMap,
    train: Examples,
    lists: CandidateLists | None,
    device: torch.device,
) -> Tensor:
    """Say what the training will need, before weights are read.

    Args:
        settings: the teacher's.
        llm: folder or hub id of the language model.
        id_map: the items and their titles.
        train: the examples that it will learn from.
        lists: their candidates, for an objective that shows any.
        device: where it will compute.

    Returns:
        ``[N]`` int64: tokens of each training row.

    Raises:
        ModelError: a model that the objective cannot use.
        ProblemsFound: as `TeacherObjective.prompts`.
    """
    empty = blueprint(llm)
    objective = objective_of(settings.objective)
    objective.check_body(llm, empty)
    prompts = objective.prompts(settings, id_map, read_tokenizer(llm), context_of(empty))
    report_truncation(prompts.truncated, id_map.num_items, settings)
    if prompts.unknown:
        rule = "teacher: %d of %d titles hold nothing that the language model's tokenizer knows"
        _log.warning(rule, prompts.unknown, id_map.num_items)
    shown = None if lists is None else torch.from_numpy(lists.of(train))
    rows = TensorExamples.of(train, torch.device("cpu"))
    cost = objective.row_tokens(prompts, rows, shown)
    shape = model_shape(empty, settings.lora)
    form = weight_format(settings, computing_type(empty.config, settings.dtype, settings.quantise, device))
    load = workload_of(settings, shape, id_map.num_items, int(cost.max()))
    estimate = estimate_resources(shape, settings, form, load)
    _log.info("teacher: %s", need_in_short(estimate, len(cost), settings))
    _log.debug("teacher: %s", estimate_sentence(estimate, load, len(cost), int(cost.sum()), settings))
    _warn_of_memory(estimate, device)
    return cost


def report_truncation(truncated: TruncatedTitles, num_items: int, settings: TeacherSettings) -> None:
    """Say what becomes of titles that are longer than ``prompt.title_tokens``.

    Args:
        truncated: what the prompts found.
        num_items: V.
        settings: the bound.
    """
    if not truncated.cut:
        return
    alike = (
        f"; {truncated.alike} of them can no longer be told from another item's by their text"
        if truncated.alike
        else ""
    )
    _log.log(
        logging.WARNING if truncated.alike else logging.INFO,
        "teacher: %d of %d titles are cut to teacher.prompt.title_tokens=%d in prompts%s",
        truncated.cut,
        num_items,
        settings.prompt.title_tokens,
        alike,
    )


def _warn_of_memory(estimate: ResourceEstimate, device: torch.device) -> None:
    if device.type != "cuda":
        return
    there = torch.cuda.get_device_properties(device).total_memory
    if estimate.memory > there:
        _log.warning(
            "teacher: the device has %s, less than the estimate; lower teacher.train.loop.micro_batch_size, or set "
            "teacher.gradient_checkpointing=true or teacher.quantise=4bit",
            gigabytes(there),
        )
