"""The language-model head, which `load_llm` leaves out: put onto the model that it loaded, whatever its layers are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from src.core.errors import ModelError
from src.teacher.llm import LanguageModel

_FIELD = "teacher.llm"
_QUANTISED = ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit", "quantization_method", "hf_quantizer")
_STEP = "choose a causal language model, or teacher.objective=item_ce"


def with_language_head(language: LanguageModel) -> LanguageModel:
    """The same model, not a copy, as a causal language model.

    Raises ``ModelError`` for an encoder, and where the weights of the head are missing.
    """
    require_decoder(language.is_decoder, language.name)
    inner: PreTrainedModel = language.model
    causal = _head_alone(language.name, inner)
    prefix = causal.base_model_prefix
    held = getattr(causal, prefix, None)
    if held is None or held.__class__ is not inner.__class__:
        rule = f"{type(causal).__name__} holds no {type(inner).__name__} as its {prefix!r}"
        raise ModelError.one(_FIELD, language.name, rule, _STEP)
    setattr(causal, prefix, inner)
    causal.config = inner.config
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


def _head_alone(name: str, inner: PreTrainedModel) -> PreTrainedModel:
    """The causal model of this name without its layers: reading these again would double time and memory."""
    embedding = inner.get_input_embeddings().weight
    with _quietly():
        causal, loading = AutoModelForCausalLM.from_pretrained(
            name, config=_without_layers(name), dtype=inner.dtype, output_loading_info=True
        )
    head = {key for key, _ in causal.named_parameters() if not key.startswith(f"{causal.base_model_prefix}.")}
    if missing := sorted(head & set(loading["missing_keys"])):
        rule = f"has no weights for its language-model head ({', '.join(missing)})"
        raise ModelError.one(_FIELD, name, rule, _STEP)
    model: PreTrainedModel = causal.to(embedding.device)
    return model


def _without_layers(name: str) -> PretrainedConfig:
    config = AutoConfig.from_pretrained(name)
    config.num_hidden_layers = 0
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = []
    return config


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the report that every layer's weights were left out."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
