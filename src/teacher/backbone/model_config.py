"""What a language model is like, by its config, tokenizer and the shapes in its files: no weight is read."""

from __future__ import annotations

import copy
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn
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

from src.core.errors import ModelError
from src.teacher.backbone.model_files import check_numbers, check_object, own_code, weight_files
from src.teacher.backbone.quantisation import stored_form
from src.teacher.backbone.transformers_calls import (
    FIELD,
    explained,
    heads_are_expected,
    hide_progress,
    is_local,
    quietly,
)
from src.teacher.settings import NOT_QUANTISED

#: code that comes with a model is never run, and nobody is asked whether it may be
OWN_CODE = {"trust_remote_code": False}


#: by which names configs tell how many tokens a model reads
_LIMITS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_seq_length", "max_sequence_length")


def read_model_config(name: str) -> PretrainedConfig:
    """A model's config.

    Raises ``ModelError`` when it cannot be read, holds impossible sizes, or is that of a model which needs code of its
    own, of an encoder-decoder family (half of one, too), of a family without attention, or of a model of more than
    text.
    """
    if is_local(name):
        check_object(Path(name))
    with explained(name, "config.json"):
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
    pad = getattr(config, "pad_token_id", None)
    if isinstance(pad, int) and not -config.vocab_size <= pad < config.vocab_size:
        config.pad_token_id = None  # any row serves as padding under the mask, and the table has none of that number
    if getattr(config, "num_attention_heads", None) is None:
        rule = f"{family} has no attention, by which the teacher reads a history"
        raise ModelError.one(FIELD, name, rule, "choose another family, such as LLaMA, Qwen, OPT or BERT")
    return config


def read_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A model's tokenizer; raises ``ModelError`` when it cannot be read or is empty."""
    with explained(name, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **OWN_CODE)
    # without its files, some families' tokenizer is made of special tokens alone: it reads every word as unknown
    if not set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids):
        raise ModelError.one(FIELD, name, "its tokenizer knows no words", "add tokenizer.json or the files it is of")
    return tokenizer


def is_decoder(config: PretrainedConfig) -> bool:
    """Causal models are decoders; those that transformers also lists for masked language modelling are encoders."""
    return bool(getattr(config, "is_decoder", False)) or config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def fitted_config(name: str) -> PretrainedConfig:
    """A model's config, with as many tokens as the table in its files has where config.json counts otherwise.

    Of a hub id the files are not looked at. Raises ``ModelError`` as `read_model_config` does, and where a weight has
    another shape than config.json says.
    """
    config = read_model_config(name)
    if not is_local(name) or stored_form(config) != NOT_QUANTISED or not weight_files(Path(name)):
        return config
    _, mismatched = compare_with_files(name, config)
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


def compare_with_files(name: str, config: PretrainedConfig) -> tuple[set[str], set[tuple[str, torch.Size, torch.Size]]]:
    """Weights that are missing in the files, and those with another shape there (name, shape there, shape here).

    Reads names and shapes alone.
    """
    hide_progress()
    with explained(name, "weights"), quietly(), heads_are_expected():
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


def blueprint(name: str) -> PreTrainedModel:
    """A model as its config describes it, on torch's meta device: all of its layers and none of its weights.

    Raises ``ModelError`` as `load_llm` does.
    """
    config = fitted_config(name)
    with explained(name, "config.json"), torch.device("meta"):
        model: PreTrainedModel = AutoModel.from_config(config, **OWN_CODE)
    return model


def table_shape(model: PreTrainedModel) -> tuple[int, int]:
    """Rows (tokens) and width of a model's token embeddings."""
    rows, width = model.get_input_embeddings().weight.shape
    return int(rows), int(width)


def state_width(model: PreTrainedModel) -> int:
    """D of a model without weights; `LanguageModel.hidden_size` is what a pass through one with weights gave."""
    # OPT-350m brings its states back to the width of its table
    narrowed = getattr(getattr(model, "decoder", None), "project_out", None)
    return int(narrowed.out_features if isinstance(narrowed, nn.Linear) else model.config.hidden_size)


def keep_layers(config: PretrainedConfig, layers: int) -> None:
    """Let a config describe its first ``layers`` layers alone."""
    config.num_hidden_layers = min(layers, config.num_hidden_layers)
    if getattr(config, "layer_types", None) is not None:
        # a few families compute the list from the number of layers
        with suppress(AttributeError):
            config.layer_types = config.layer_types[:layers]


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
