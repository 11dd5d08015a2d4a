"""A teacher is tried out on two rows before anything is trained: table, limits, gate, loss, and what it will write.

Language models come in some hundred families, and their configs name the same thing in many ways or wrongly. What a
pass through the model itself shows needs no list of families.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor

from src.core.errors import ConfigError, ModelError, OutOfMemory, TrainingFailed
from src.core.logging import get_logger
from src.data.examples import SequenceData
from src.data.id_map import IdMap
from src.student.architectures.sasrec import SASRec
from src.teacher.backbone.llm import LanguageModel, load_llm
from src.teacher.backbone.model_config import read_model_config
from src.teacher.backbone.model_files import weight_files
from src.teacher.backbone.quantisation import stored_form
from src.teacher.backbone.transformers_calls import FIELD, is_local, named_errors
from src.teacher.factory import build_teacher
from src.teacher.ilora_model import GatedTeacher
from src.teacher.objective import objective_of
from src.teacher.settings import NOT_QUANTISED, TINY, TeacherSettings

_log = get_logger(__name__)

_CPU = torch.device("cpu")
#: bytes of weights; of a larger model the first layers are read
_WHOLE_MODEL = 1 << 28
_FIRST_LAYERS = 2
_ITEMS = 8  # of the small catalogue, at least


def dry_run_before_training(settings: TeacherSettings, data: SequenceData) -> None:
    """Try a language model out on the CPU, while nothing has been trained: a teacher around it, over a few items.

    Of a large model only the first layers are read. A model that is not on this disk yet, or is stored quantised, is
    left to `dry_run_loaded`, once it is loaded.

    Raises:
        ModelError: the model cannot be read or run, its layers cannot be gated, its numbers are not finite.
        ConfigError: it reads fewer tokens than ``prompt.max_tokens``.
    """
    language = _first_layers(settings)
    if language is None:
        return
    few = _few_items(data.id_map, max(_ITEMS, settings.title.candidates, settings.export.top_n))
    small = replace(settings, compile=False, quantise=NOT_QUANTISED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = SASRec(settings.encoder, few.num_items, data.history_length)
        require_length(settings, language)
        teacher = build_teacher(small, few, encoder, language, _CPU)
        history = torch.full((2, data.history_length), few.num_items)
        history[0] = torch.arange(data.history_length) % few.num_items
        history[1, 0] = 1
        dry_run_loaded(teacher, history, torch.tensor([data.history_length, 1]), torch.tensor([0, few.num_items - 1]))


def _first_layers(settings: TeacherSettings) -> LanguageModel | None:
    name = settings.llm
    if name == TINY or stored_form(read_model_config(name)) != NOT_QUANTISED:
        return None
    files = weight_files(_folder(name))
    if not files or not all(file.is_file() for file in files):
        return None
    if sum(file.stat().st_size for file in files) > _WHOLE_MODEL:
        try:
            return load_llm(name, settings.dtype, _CPU, layers=_FIRST_LAYERS)
        except ModelError as error:
            # some families have lists with an entry a layer
            _log.debug("the first layers of %s cannot be read alone: %s", name, error)
    return load_llm(name, settings.dtype, _CPU)


def _folder(name: str) -> Path:
    """The folder of a model's files: its own, or that of a hub id's files on this disk."""
    if is_local(name):
        return Path(name)
    cached = try_to_load_from_cache(name, "config.json")
    return Path(cached).parent if isinstance(cached, str) else Path("nowhere")


def _few_items(id_map: IdMap, count: int) -> IdMap:
    """The items with the longest titles, ``count`` of them at most."""
    order = sorted(range(id_map.num_items), key=lambda item: -len(id_map.titles[item]))[:count]
    return IdMap(tuple(id_map.raw_ids[item] for item in order), tuple(id_map.titles[item] for item in order))


def require_length(settings: TeacherSettings, language: LanguageModel) -> None:
    """Raise ``ConfigError`` when a model cannot read as many tokens as a prompt may have, whatever its config says."""
    wanted, table = settings.prompt.max_tokens, language.table
    token = torch.zeros(1, 1, dtype=torch.int64, device=table.weight.device)  # type: ignore[union-attr, arg-type]

    @torch.no_grad()
    def reads(tokens: int) -> bool:
        row = table(token).expand(-1, tokens, -1)
        try:
            language.model(inputs_embeds=row, attention_mask=torch.ones(row.shape[:2], dtype=torch.int64))
        except (RuntimeError, IndexError, ValueError, AssertionError):
            return False
        return True

    if not reads(wanted):
        rule = f"{language.name} reads {_longest(reads, wanted)} tokens at most, as tried out"
        raise ConfigError.one("teacher.prompt.max_tokens", wanted, rule, "lower it")


def _longest(reads: Callable[[int], bool], wanted: int) -> int:
    """The largest number below ``wanted`` that ``reads``, where all smaller ones do."""
    least, most = 0, wanted - 1
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if reads(middle) else (least, middle - 1)
    return least


def dry_run_loaded(teacher: GatedTeacher, history: Tensor, length: Tensor, target: Tensor) -> None:
    """Do with a few rows what training and asking will do; the teacher and all random streams are left as they were.

    Args:
        teacher: as it was built.
        history: ``[B, L]`` on the teacher's device.
        length: ``[B]``.
        target: ``[B]``.

    Raises:
        ModelError: its layers fail, or give numbers that are not finite.
    """
    name = teacher.language.name
    with _untouched(teacher), named_errors(name):
        try:
            loss = objective_of(teacher.settings.objective).dry_run(teacher, history, length, target)
            finite = bool(torch.isfinite(loss))
            loss.backward()  # type: ignore[no-untyped-call]
        except (torch.OutOfMemoryError, OutOfMemory):
            return  # training goes on with fewer rows at once, and says so
        except TrainingFailed:
            finite = False
    if not finite:
        rule = f"its states are not finite in {str(teacher.language.model.dtype).removeprefix('torch.')}"
        raise ModelError.one(FIELD, name, rule, "set teacher.dtype=float32, or use another model")


@contextmanager
def _untouched(teacher: GatedTeacher) -> Iterator[None]:
    training = teacher.training
    devices = [teacher.device] if teacher.device.type == "cuda" else []
    teacher.eval()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        teacher.zero_grad(set_to_none=True)
        teacher.train(training)
