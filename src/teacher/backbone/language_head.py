"""The language-model head, which `load_llm` leaves out: put onto the model that it loaded, whatever its layers are."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from src.core.errors import ModelError
from src.teacher.backbone.llm import LanguageModel
from src.teacher.backbone.model_config import OWN_CODE, is_decoder, keep_layers
from src.teacher.backbone.model_files import weight_files
from src.teacher.backbone.transformers_calls import is_local, quietly

_FIELD = "teacher.llm"
_QUANTISED = ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit", "quantization_method", "hf_quantizer")
_STEP = "choose a causal language model, or teacher.objective=item_ce"


def with_language_head(language: LanguageModel) -> LanguageModel:
    """The same model, not a copy, as a causal language model.

    Raises ``ModelError`` for an encoder, for a family without a causal language model or with one that cannot leave out
    logits, and where the weights of the head are missing.
    """
    require_decoder(language.is_decoder, language.name)
    inner: PreTrainedModel = language.model
    place = inner.get_input_embeddings().weight.device
    causal = _head_alone(language.name, _without_layers(language.name, inner), inner.dtype).to(place)
    _require_body(language.name, causal, inner)
    setattr(causal, causal.base_model_prefix, inner)
    causal.config = inner.config
    # what a model's makers advise for chats (a temperature, a penalty for repetition) would change every answer
    causal.generation_config = GenerationConfig()
    for name in _QUANTISED:
        if hasattr(inner, name):
            # by these PEFT knows which kind of LoRA layer belongs around a linear one
            setattr(causal, name, getattr(inner, name))
    causal.tie_weights()
    return replace(language, model=causal.eval())


def require_decoder(is_decoder: bool, name: str) -> None:
    """Raises ``ModelError`` for an encoder."""
    if not is_decoder:
        raise ModelError.one(
            _FIELD, name, "is an encoder; title_lm writes titles", "choose a decoder, or teacher.objective=item_ce"
        )


def check_language_head(name: str, body: PreTrainedModel) -> None:
    """Look whether `with_language_head` will succeed, without reading weights; ``body`` may be without any.

    Of a hub id the files are not looked at. Raises ``ModelError`` as `with_language_head` does.
    """
    require_decoder(is_decoder(body.config), name)
    config = _without_layers(name, body)
    if hasattr(config, "quantization_config"):
        # no layer is left that could be quantised, and the library that would need a GPU
        del config.quantization_config
    _require_causal(name, config)
    with torch.device("meta"):
        causal = AutoModelForCausalLM.from_config(config, **OWN_CODE)
    _require_body(name, causal, body)
    files = weight_files(Path(name)) if is_local(name) else []
    # files of the older format would have to be read whole
    if files and all(file.suffix == ".safetensors" for file in files):
        _head_alone(name, config, torch.float32, device_map={"": "meta"})


def _require_body(name: str, causal: PreTrainedModel, body: PreTrainedModel) -> None:
    prefix = causal.base_model_prefix
    held = getattr(causal, prefix, None)
    if held is None or held.__class__ is not body.__class__:
        rule = f"{type(causal).__name__} holds no {type(body).__name__} as its {prefix!r}"
        raise ModelError.one(_FIELD, name, rule, _STEP)
    if "logits_to_keep" not in inspect.signature(causal.forward).parameters:
        rule = f"{type(causal).__name__} cannot leave out the logits of a prompt (it takes no logits_to_keep)"
        raise ModelError.one(_FIELD, name, rule, _STEP)


def _head_alone(
    name: str, config: PretrainedConfig, dtype: torch.dtype, device_map: dict[str, str] | None = None
) -> PreTrainedModel:
    """The causal model of this name with a config `_without_layers`: reading these would double time and memory."""
    _require_causal(name, config)
    with quietly():
        causal, loading = AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=dtype, output_loading_info=True, device_map=device_map, **OWN_CODE
        )
    head = {key for key, _ in causal.named_parameters() if not key.startswith(f"{causal.base_model_prefix}.")}
    if missing := sorted(head & set(loading["missing_keys"])):
        rule = f"has no weights for its language-model head ({', '.join(missing)})"
        raise ModelError.one(_FIELD, name, rule, _STEP)
    model: PreTrainedModel = causal
    return model


def _require_causal(name: str, config: PretrainedConfig) -> None:
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError.one(_FIELD, name, f"{config.model_type} has no causal language model", _STEP)


def _without_layers(name: str, body: PreTrainedModel) -> PretrainedConfig:
    config = AutoConfig.from_pretrained(name, **OWN_CODE)
    config.vocab_size = body.config.vocab_size
    keep_layers(config, 0)
    return config
