"""Language models and their tokenizers: any Hugging Face decoder, and encoders of the BERT kind."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from src.core.data_utils import fingerprint, fingerprint_file
from src.core.errors import ConfigError, ModelError, OutOfMemory, Problem, ProblemsFound
from src.core.hardware import no_cudnn_attention
from src.core.logging import get_logger
from src.core.memory import is_out_of_memory, reason_of
from src.teacher.gated_lora import inject, require_checkpointing
from src.teacher.quantise import check_quantise, check_stored_form, loading_arguments
from src.teacher.settings import NOT_QUANTISED, TINY, Quantise, TeacherSettings

_log = get_logger(__name__)

_FIELD = "teacher.llm"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZER = ("token*", "vocab*", "merges*", "added_tokens*", "special_tokens*", "*.model")
_NAMES = ("_name_or_path", "name_or_path")
_WHOLE_FILE = 1 << 28  # bytes; a larger weights file is known by its size, its header and samples
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A pretrained model and its tokenizer.

    `load_llm` leaves the language-model head out; `src.teacher.title.language.with_language_head` puts it back.

    ``hidden_size`` is D. ``is_decoder``: the state of the last real token speaks for a sequence, not the mean of all.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    is_decoder: bool
    hidden_size: int
    name: str
    fingerprint: str


def hide_progress() -> None:
    """No bars of transformers on the terminal: ours say enough."""
    transformers_logging.disable_progress_bar()


@contextmanager
def _heads_are_expected() -> Iterator[None]:
    """No report of transformers on the terminal about weights that were left aside: a teacher needs no head.

    What is missing or of another size is still reported.
    """

    def is_worth_reading(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        return "LOAD REPORT" not in said or any(word in said for word in ("MISSING", "MISMATCH", "CONVERSION"))

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_worth_reading)
    try:
        yield
    finally:
        logger.removeFilter(is_worth_reading)


def is_local(name_or_path: str) -> bool:
    """Whether a name means a folder: one that exists, or one written as a path."""
    return Path(name_or_path).is_dir() or name_or_path.startswith((".", "/", "~"))


@contextmanager
def _explained(name: str, what: str) -> Iterator[None]:
    """Turn what transformers raises for a missing or damaged model into one kind of error that teaches."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            # nothing that another id or the network could help
            raise _too_large(name, error) from error
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if is_local(name):
            step = "name a folder with config.json, tokenizer and weights (save_pretrained writes one)"
        else:
            step = "check the hub id, the network and, for a gated model, HF_TOKEN; or name a local folder"
        raise ModelError.one(_FIELD, name, f"its {what} cannot be read ({first})", step) from error


def _too_large(name: str, error: BaseException) -> OutOfMemory:
    advice = "set teacher.quantise=4bit, take a smaller model, or free the device"
    return OutOfMemory(f"{_FIELD} = {name!r}: it does not fit on the device ({reason_of(error)}) → {advice}")


def read_config(name: str) -> PretrainedConfig:
    """A model's config.

    Raises ``ModelError`` when it cannot be read, or is that of an encoder-decoder or of a model of more than text.
    """
    with _explained(name, "config.json"):
        config = AutoConfig.from_pretrained(name)
    if config.is_encoder_decoder:
        raise ModelError.one(
            _FIELD, name, f"{config.model_type} is an encoder-decoder", "choose a decoder or an encoder"
        )
    if config.get_text_config() is not config or getattr(config, "hidden_size", None) is None:
        rule = f"{config.model_type} is no model of text alone"
        raise ModelError.one(_FIELD, name, rule, "name a text model of its family")
    return config


def read_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A model's tokenizer; raises ``ModelError`` when it cannot be read or is empty."""
    with _explained(name, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    # without its files, some families' tokenizer is made of special tokens alone: it reads every word as unknown
    if not set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids):
        raise ModelError.one(_FIELD, name, "its tokenizer knows no words", "add tokenizer.json or the files it is of")
    return tokenizer


def is_decoder(config: PretrainedConfig) -> bool:
    """Causal models are decoders; those that transformers also lists for masked language modelling are encoders."""
    return bool(getattr(config, "is_decoder", False)) or config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def computing_type(config: PretrainedConfig, wanted: str, quantise: Quantise, device: torch.device) -> torch.dtype:
    """Of the frozen weights; in a quantised model, of what is not quantised.

    That stays in half precision, as in a model that is not quantised: norms compute in float32 whatever their weights
    are, and float32 embeddings would make every activation float32.
    """
    if quantise != NOT_QUANTISED:
        return torch.bfloat16
    if wanted != "auto":
        return torch.float32 if wanted == "float32" else torch.bfloat16
    stored = getattr(config, "dtype", None)
    half = stored in (torch.float16, torch.bfloat16, "float16", "bfloat16")
    return torch.bfloat16 if half and device.type == "cuda" else torch.float32


def _switch_dropout_off(config: PretrainedConfig) -> None:
    """The model is frozen: its own dropout would only blur what the adapters learn (and slow attention down)."""
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)


def choose_attention(config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> str:
    """The fastest attention that is installed and that the model's family has.

    FlashAttention 2 (half precision on a GPU), else torch's scaled dot product, else the family's own (`eager`).
    """
    half_on_gpu = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    flash = ("flash_attention_2",) if half_on_gpu and find_spec("flash_attn") is not None else ()
    for name in (*flash, "sdpa"):
        try:
            with torch.device("meta"):
                AutoModel.from_config(config, attn_implementation=name)
        except (ImportError, ValueError) as error:
            _log.debug("attention %s: %s", name, error)
        else:
            return name
    return "eager"


def load_llm(name_or_path: str, dtype: str, device: torch.device, quantise: Quantise = NOT_QUANTISED) -> LanguageModel:
    """Load a model from a folder or the hub, in eval mode, with the best attention that it has.

    ``dtype``: auto (float32 on a CPU; on a GPU as stored, half precision as bfloat16), float32 or bfloat16; read only
    without ``quantise``. Raises ``ModelError`` when config, tokenizer or weights are missing, damaged or incomplete,
    or quantised otherwise; ``ConfigError`` when ``device`` cannot hold a quantised model; ``OutOfMemory`` when it has
    too little memory.
    """
    hide_progress()
    no_cudnn_attention()
    check_quantise(quantise, device)
    config = read_config(name_or_path)
    check_stored_form(name_or_path, config, quantise)
    config.use_cache = False
    _switch_dropout_off(config)
    tokenizer = read_tokenizer(name_or_path)
    own_dtype = computing_type(config, dtype, quantise, device)
    with _explained(name_or_path, "model"), _heads_are_expected():
        attention = choose_attention(config, own_dtype, device)
        model, loading = AutoModel.from_pretrained(
            name_or_path,
            config=config,
            dtype=own_dtype,
            attn_implementation=attention,
            output_loading_info=True,
            **loading_arguments(config, quantise, device),
        )
    _log.info("language model: %s, attention %s, %s", config.model_type, attention, _form(own_dtype, quantise))
    missing = sorted(key for key in loading["missing_keys"] if "pooler" not in key)
    if missing:
        raise ModelError.one(_FIELD, name_or_path, f"{len(missing)} weights are missing, {missing[0]} among them")
    try:
        model = (model if quantise != NOT_QUANTISED else model.to(device)).eval()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise _too_large(name_or_path, error) from error
    _check_width(name_or_path, model)
    identity = fingerprint_llm(name_or_path)
    return LanguageModel(model, tokenizer, is_decoder(config), int(config.hidden_size), name_or_path, identity)


def _form(dtype: torch.dtype, quantise: Quantise) -> str:
    return str(dtype).removeprefix("torch.") if quantise == NOT_QUANTISED else quantise


def blueprint(name: str) -> PreTrainedModel:
    """A model as its config describes it, on torch's meta device: all of its layers and none of its weights.

    Raises ``ModelError`` as `load_llm` does.
    """
    config = read_config(name)
    with _explained(name, "config.json"), torch.device("meta"):
        model: PreTrainedModel = AutoModel.from_config(config)
    return model


def context_of(config: PretrainedConfig) -> int | None:
    """The most tokens that a model reads; None where there is no such limit."""
    longest: int | None = getattr(config, "max_position_embeddings", None)
    return longest


def check_llm(settings: TeacherSettings) -> None:
    """Look at config, tokenizer, weight files and layer names without loading the model.

    Raises ``ModelError`` with every problem found. `tiny` is built later and needs no look.
    """
    name = settings.llm
    if name == TINY:
        return
    problems: list[Problem] = []
    if is_local(name) and not Path(name).is_dir():
        raise ModelError.one(_FIELD, name, "no such folder", "name a model's folder, a hub id, or tiny")
    for check in (_check_config, _check_tokenizer, _check_weights):
        try:
            check(name, settings)
        except ProblemsFound as error:
            problems += error.problems
    if problems:
        raise ModelError(problems)


def _check_config(name: str, settings: TeacherSettings) -> None:
    config = read_config(name)
    check_stored_form(name, config, settings.quantise)
    longest = context_of(config)
    if longest is not None and settings.prompt.max_tokens > longest:
        raise ConfigError.one(
            "teacher.prompt.max_tokens",
            settings.prompt.max_tokens,
            f"{name} reads {longest} tokens at most",
            "lower it",
        )
    empty = blueprint(name)
    _check_width(name, empty)
    if settings.gradient_checkpointing:
        require_checkpointing(empty)
    with _explained(name, "layers"):
        inject(empty, settings.lora)


def _check_width(name: str, model: PreTrainedModel) -> None:
    width, states = int(model.get_input_embeddings().weight.shape[1]), model.config.hidden_size
    if width != states:
        rule = f"its token embeddings have width {width}, its states {states}"
        raise ModelError.one(_FIELD, name, rule, "use another model")


def _check_tokenizer(name: str, settings: TeacherSettings) -> None:
    read_tokenizer(name)


def _check_weights(name: str, settings: TeacherSettings) -> None:
    if not is_local(name):
        return
    files = weight_files(Path(name))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        rule = f"weights are missing ({', '.join(missing[:3]) or ' or '.join(_WEIGHTS[:3])})"
        raise ModelError.one(_FIELD, name, rule, "copy the model again")
    for file in files:
        if file.suffix == ".safetensors":
            with _explained(name, f"{file.name}"), safe_open(file, framework="pt") as handle:
                handle.keys()


def weight_files(folder: Path) -> list[Path]:
    """The weight files that a model folder has or, by its index, should have; empty when there are none."""
    for name in _WEIGHTS:
        file = folder / name
        if not file.is_file():
            continue
        if not name.endswith(".index.json"):
            return [file]
        with _explained(str(folder), name):
            index: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return [folder / shard for shard in sorted(set(index["weight_map"].values()))]
    return []


def fingerprint_llm(name_or_path: str) -> str:
    """Identifies a model: the content of its config, tokenizer (text or SentencePiece) and weights, or a hub id with
    its revision.

    A weights file above 256 MiB is known by its size, its first and last part, and 64 samples between them. Raises
    ``ModelError`` when it cannot be read.
    """
    if not is_local(name_or_path):
        config = read_config(name_or_path)
        return fingerprint(name_or_path, getattr(config, "_commit_hash", None))
    folder = Path(name_or_path)
    with _explained(name_or_path, "files"):
        tokenizer = sorted({file for pattern in _TOKENIZER for file in folder.glob(pattern) if file.is_file()})
        parts = [_fingerprint_config(folder / "config.json"), *map(fingerprint_file, tokenizer)]
        return fingerprint(*parts, *(_fingerprint_weights(file) for file in weight_files(folder)))


def _fingerprint_config(file: Path) -> str:
    content = json.loads(file.read_text(encoding="utf-8"))
    # a saved copy remembers where its model came from
    return fingerprint(json.dumps({k: v for k, v in content.items() if k not in _NAMES}, sort_keys=True))


def _fingerprint_weights(file: Path) -> str:
    size = file.stat().st_size
    if size <= _WHOLE_FILE:
        return fingerprint_file(file)
    parts = []
    with file.open("rb") as handle:
        for sample in range(_SAMPLES):
            handle.seek((size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
            parts.append(handle.read(_SAMPLE_BYTES).hex())
    return fingerprint(size, parts)
