"""Language models and their tokenizers: any Hugging Face decoder, and encoders of the BERT kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from src.core.errors import ModelError
from src.core.hardware import no_cudnn_attention
from src.core.logging import get_logger
from src.core.memory import is_out_of_memory
from src.teacher.backbone.model_config import (
    OWN_CODE,
    fitted_config,
    is_decoder,
    keep_layers,
    read_tokenizer,
    table_shape,
)
from src.teacher.backbone.model_fingerprint import fingerprint_llm
from src.teacher.backbone.quantisation import check_quantise, check_stored_form, loading_arguments
from src.teacher.backbone.transformers_calls import (
    FIELD,
    explained,
    heads_are_expected,
    hide_progress,
    named_errors,
    too_large,
)
from src.teacher.settings import NOT_QUANTISED, Quantise

_log = get_logger(__name__)


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A pretrained model and its tokenizer.

    `load_llm` leaves the language-model head out; `src.teacher.backbone.language_head.with_language_head` puts it back.

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


def computing_type(config: PretrainedConfig, wanted: str, quantise: Quantise, device: torch.device) -> torch.dtype:
    """Choose the type of the frozen weights; in a quantised model, of what is not quantised.

    That stays in half precision, as in a model that is not quantised: norms compute in float32 whatever their weights
    are, and float32 embeddings would make every activation float32.

    Args:
        config: how the model is stored.
        wanted: ``teacher.dtype``.
        quantise: bits of its linear layers.
        device: where it computes.
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
    """Choose the fastest attention that is installed and that the model's family has.

    FlashAttention 2 (half precision on a GPU), else torch's scaled dot product, else the family's own (`eager`).

    Args:
        config: the model's.
        dtype: in which it computes.
        device: where it computes.
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
    with explained(name_or_path, "model"), heads_are_expected():
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
    _log.debug("language model: %s, attention %s, %s", config.model_type, attention, _form(own_dtype, quantise))
    require_whole(name_or_path, loading["missing_keys"])
    try:
        model = (model if quantise != NOT_QUANTISED else model.to(device)).eval()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise too_large(name_or_path, error) from error
    _require_finite(name_or_path, model)
    width, forward_only = _look_at_states(name_or_path, model)
    decodes = is_decoder(config) and forward_only
    return LanguageModel(model, tokenizer, decodes, width, name_or_path, fingerprint_llm(name_or_path))


def require_whole(name: str, missing_keys: Iterable[str]) -> None:
    """Raise ``ModelError`` where weights other than a pooler are missing."""
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
    with named_errors(name):
        states: Tensor = model(inputs_embeds=table(ids)).last_hidden_state
    early = (states[0, :3] - states[1, :3]).abs().max()
    noise = torch.finfo(states.dtype).eps * states.abs().max()
    return int(states.shape[-1]), bool(early <= noise)


def _form(dtype: torch.dtype, quantise: Quantise) -> str:
    return str(dtype).removeprefix("torch.") if quantise == NOT_QUANTISED else quantise
