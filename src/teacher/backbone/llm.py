"""Language models and their tokenizers: any Hugging Face decoder, and encoders of the BERT kind."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from src.core.data_utils import fingerprint, fingerprint_file
from src.core.errors import AnyoError, ConfigError, ModelError, OutOfMemory, Problem, ProblemsFound
from src.core.hardware import no_cudnn_attention
from src.core.logging import get_logger
from src.core.memory import is_out_of_memory, reason_of
from src.teacher.backbone.gated_lora import inject, require_checkpointing
from src.teacher.backbone.model_files import FIELD, check_folder, check_numbers, check_object, own_code
from src.teacher.backbone.quantisation import check_quantise, check_stored_form, loading_arguments, stored_form
from src.teacher.settings import NOT_QUANTISED, TINY, Quantise, TeacherSettings

_log = get_logger(__name__)

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_TOKENIZER = ("token*", "vocab*", "merges*", "added_tokens*", "special_tokens*", "*.model")
_NAMES = ("_name_or_path", "name_or_path")
_WHOLE_FILE = 1 << 28  # bytes; a larger weights file is known by its size, its header and samples
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16
#: code that comes with a model is never run, and nobody is asked whether it may be
OWN_CODE = {"trust_remote_code": False}
#: by which names configs tell how many tokens a model reads
_LIMITS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_seq_length", "max_sequence_length")


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A pretrained model and its tokenizer.

    `load_llm` leaves the language-model head out; `src.teacher.title_lm.language_head.with_language_head` puts it back.

    ``hidden_size`` is D, the width of the last layer's states. ``is_decoder``: no state depends on a later token, so
    the state of the last real token speaks for a sequence, not the mean of all.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    is_decoder: bool
    hidden_size: int
    name: str
    fingerprint: str

    @property
    def table(self) -> nn.Module:
        """The token embeddings."""
        table: nn.Module = self.model.get_input_embeddings()
        return table

    @property
    def embedding_size(self) -> int:
        """Width of what the model's layers are given, which a few families (OPT-350m, ELECTRA, ALBERT) widen to D."""
        return table_shape(self.model)[1]


def table_shape(model: PreTrainedModel) -> tuple[int, int]:
    """Rows (tokens) and width of a model's token embeddings."""
    rows, width = model.get_input_embeddings().weight.shape
    return int(rows), int(width)


def state_width(model: PreTrainedModel) -> int:
    """D of a model without weights; `LanguageModel.hidden_size` is what a pass through one with weights gave."""
    # OPT-350m brings its states back to the width of its table
    narrowed = getattr(getattr(model, "decoder", None), "project_out", None)
    return int(narrowed.out_features if isinstance(narrowed, nn.Linear) else model.config.hidden_size)


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
    except AnyoError:
        raise
    # whatever a library meets in files that others wrote: no list of its errors would be whole
    except Exception as error:
        if is_out_of_memory(error):
            # nothing that another id or the network could help
            raise _too_large(name, error) from error
        first = first_line(error)
        if is_local(name):
            step = "name a folder with config.json, tokenizer and weights (save_pretrained writes one)"
        else:
            step = "check the hub id, the network and, for a gated model, HF_TOKEN; or name a local folder"
        raise ModelError.one(FIELD, name, f"its {what} cannot be read ({first})", step) from error


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _too_large(name: str, error: BaseException) -> OutOfMemory:
    advice = "set teacher.quantise=4bit, take a smaller model, or free the device"
    return OutOfMemory(f"{FIELD} = {name!r}: it does not fit on the device ({reason_of(error)}) → {advice}")


def read_config(name: str) -> PretrainedConfig:
    """A model's config.

    Raises ``ModelError`` when it cannot be read, holds impossible sizes, or is that of a model which needs code of its
    own, of an encoder-decoder family (half of one, too), of a family without attention, or of a model of more than
    text.
    """
    if is_local(name):
        check_object(Path(name))
    with _explained(name, "config.json"):
        try:
            config = AutoConfig.from_pretrained(name, **OWN_CODE)
        except ValueError as error:
            if "trust_remote_code" in str(error):
                raise own_code(name, "it") from error
            raise
    family = config.model_type
    if config.is_encoder_decoder or family in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        rule = f"{family} is an encoder-decoder family"
        raise ModelError.one(FIELD, name, rule, "choose a decoder or an encoder")
    if config.get_text_config() is not config or getattr(config, "hidden_size", None) is None:
        raise ModelError.one(FIELD, name, f"{family} is no model of text alone", "name a text model of its family")
    check_numbers(name, config)
    if getattr(config, "num_attention_heads", None) is None:
        rule = f"{family} has no attention, by which the teacher reads a history"
        raise ModelError.one(FIELD, name, rule, "choose another family, such as LLaMA, Qwen, OPT or BERT")
    return config


def read_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A model's tokenizer; raises ``ModelError`` when it cannot be read or is empty."""
    with _explained(name, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **OWN_CODE)
    # without its files, some families' tokenizer is made of special tokens alone: it reads every word as unknown
    if not set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids):
        raise ModelError.one(FIELD, name, "its tokenizer knows no words", "add tokenizer.json or the files it is of")
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
                AutoModel.from_config(config, attn_implementation=name, **OWN_CODE)
        except (ImportError, ValueError) as error:
            _log.debug("attention %s: %s", name, error)
        else:
            return name
    return "eager"


def load_llm(
    name_or_path: str, dtype: str, device: torch.device, quantise: Quantise = NOT_QUANTISED, layers: int = 0
) -> LanguageModel:
    """Load a model from a folder or the hub, in eval mode, with the best attention that it has.

    Args:
        name_or_path: folder or hub id.
        dtype: auto (float32 on a CPU; on a GPU as stored, half precision as bfloat16), float32 or bfloat16; read only
            without ``quantise``.
        device: where it is put.
        quantise: bits of its linear layers.
        layers: read its first layers alone, to try out what a pass through the whole model would do; 0: all.

    Raises:
        ModelError: config, tokenizer or weights are missing, damaged, incomplete, not finite, or quantised otherwise;
            the model cannot be run.
        ConfigError: ``device`` cannot hold a quantised model.
        OutOfMemory: ``device`` has too little memory.
    """
    hide_progress()
    no_cudnn_attention()
    check_quantise(quantise, device)
    config = fitted_config(name_or_path)
    check_stored_form(name_or_path, config, quantise)
    config.use_cache = False
    _switch_dropout_off(config)
    if layers:
        keep_layers(config, layers)
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
            **OWN_CODE,
            **loading_arguments(config, quantise, device),
        )
    told = _log.debug if layers else _log.info
    told("language model: %s, attention %s, %s", config.model_type, attention, _form(own_dtype, quantise))
    _require_whole(name_or_path, loading["missing_keys"])
    try:
        model = (model if quantise != NOT_QUANTISED else model.to(device)).eval()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise _too_large(name_or_path, error) from error
    _require_finite(name_or_path, model)
    width, forward_only = _look_at_states(name_or_path, model)
    decodes = is_decoder(config) and forward_only
    return LanguageModel(model, tokenizer, decodes, width, name_or_path, fingerprint_llm(name_or_path))


def keep_layers(config: PretrainedConfig, layers: int) -> None:
    """Let a config describe its first ``layers`` layers alone."""
    config.num_hidden_layers = min(layers, config.num_hidden_layers)
    if getattr(config, "layer_types", None) is not None:
        # a few families compute the list from the number of layers
        with suppress(AttributeError):
            config.layer_types = config.layer_types[:layers]


def _require_whole(name: str, missing_keys: Iterable[str]) -> None:
    missing = sorted(key for key in missing_keys if "pooler" not in key)
    if missing:
        raise ModelError.one(FIELD, name, f"{len(missing)} weights are missing, {missing[0]} among them")


def _require_finite(name: str, model: PreTrainedModel) -> None:
    for key, weight in model.named_parameters():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            rule = f"its weights hold numbers that are not finite ({key})"
            raise ModelError.one(
                FIELD, name, rule, "copy the model again, or take weights of a wider type than float16"
            )


@torch.no_grad()
def _look_at_states(name: str, model: PreTrainedModel) -> tuple[int, bool]:
    """Width of the last layer's states, and whether none of them depends on a later token: by one small pass.

    Neither can be told from a config for every family: OPT-350m narrows its states, XLNet and some embedding models of
    decoder families read both ways.
    """
    table = model.get_input_embeddings()
    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]], device=table.weight.device) % table.weight.shape[0]
    with runs(name):
        states: Tensor = model(inputs_embeds=table(ids)).last_hidden_state
    early = (states[0, :3] - states[1, :3]).abs().max()
    noise = torch.finfo(states.dtype).eps * states.abs().max()
    return int(states.shape[-1]), bool(early <= noise)


@contextmanager
def runs(name: str) -> Iterator[None]:
    """Turn whatever a model's own layers raise into an error that names the model."""
    try:
        yield
    except AnyoError:
        raise
    # the code of some hundred families: no list of its errors would be whole
    except Exception as error:
        if is_out_of_memory(error):
            raise _too_large(name, error) from error
        rule = f"a pass through its layers fails ({type(error).__name__}: {first_line(error)})"
        raise ModelError.one(FIELD, name, rule, "choose a model of another family") from error


def _form(dtype: torch.dtype, quantise: Quantise) -> str:
    return str(dtype).removeprefix("torch.") if quantise == NOT_QUANTISED else quantise


def fitted_config(name: str) -> PretrainedConfig:
    """A model's config, with as many tokens as the table in its files has where config.json counts otherwise.

    Of a hub id the files are not looked at. Raises ``ModelError`` as `read_config` does, and where a weight has another
    shape than config.json says.
    """
    config = read_config(name)
    if not is_local(name) or stored_form(config) != NOT_QUANTISED or not weight_files(Path(name)):
        return config
    _, mismatched = _compare(name, config)
    if not mismatched:
        return config
    rows = {stored[0] for _, stored, _ in mismatched}
    tokens_only = all(stored[1:] == own[1:] and own[0] == config.vocab_size for _, stored, own in mismatched)
    if len(rows) == 1 and tokens_only:
        config.vocab_size = int(rows.pop())
        return config
    key, stored, own = sorted(mismatched)[0]
    rule = (
        f"its weights are not those of its config.json ({key} has shape {list(stored)} in the files, {list(own)} there)"
    )
    raise ModelError.one(FIELD, name, rule, "copy the model again, config.json and weights of one and the same")


def _compare(name: str, config: PretrainedConfig) -> tuple[set[str], set[tuple[str, torch.Size, torch.Size]]]:
    """Weights that are missing in the files, and those with another shape there (name, shape there, shape here).

    Reads names and shapes alone.
    """
    hide_progress()
    with _explained(name, "weights"), quietly(), _heads_are_expected():
        _, loading = AutoModel.from_pretrained(
            name,
            config=copy.deepcopy(config),
            dtype=torch.float32,
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **OWN_CODE,
        )
    return set(loading["missing_keys"]), set(loading["mismatched_keys"])


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' own report on what it reads."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def blueprint(name: str) -> PreTrainedModel:
    """A model as its config describes it, on torch's meta device: all of its layers and none of its weights.

    Raises ``ModelError`` as `load_llm` does.
    """
    config = fitted_config(name)
    with _explained(name, "config.json"), torch.device("meta"):
        model: PreTrainedModel = AutoModel.from_config(config, **OWN_CODE)
    return model


def context_of(model: PreTrainedModel) -> int | None:
    """The most tokens that a model reads, by its tables of positions and by its config; None where there is no limit.

    A table may hold rows that no token gets: RoBERTa's and MPNet's begin behind that of padding, OPT's two rows later.
    """
    limits = [_positions(module) for name, module in model.named_modules() if _holds_positions(name, module)]
    named = [getattr(model.config, name, None) for name in _LIMITS]
    # some families say "no limit" with a negative number
    limits += [int(value) for value in named if isinstance(value, int) and value > 0]
    return min(limits) if limits else None


def _holds_positions(name: str, module: nn.Module) -> bool:
    own = name.rsplit(".", 1)[-1]
    return isinstance(module, nn.Embedding) and (own == "wpe" or ("pos" in own and "emb" in own and "rel" not in own))


def _positions(module: nn.Module) -> int:
    assert isinstance(module, nn.Embedding)
    offset = getattr(module, "offset", 0)
    padding = 0 if module.padding_idx is None else module.padding_idx + 1
    return module.num_embeddings - (offset if isinstance(offset, int) else 0) - padding


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
    config = read_config(name)
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
        rule = f"weights are missing ({', '.join(missing[:3]) or ' or '.join(_WEIGHTS[:3])})"
        raise ModelError.one(FIELD, name, rule, "copy the model again")
    for file in files:
        if file.suffix == ".safetensors":
            with _explained(name, f"{file.name}"), safe_open(file, framework="pt") as handle:
                handle.keys()
    config = read_config(name)
    if stored_form(config) == NOT_QUANTISED:
        _require_whole(name, _compare(name, config)[0])


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
