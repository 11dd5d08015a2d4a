"""The shape of a language model, which may be one without weights (on torch's meta device), as far as memory goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from src.teacher.backbone.gated_lora import adaptable_layers, resolve_targets
from src.teacher.backbone.model_config import state_width, table_shape
from src.teacher.settings import LoraSettings


@dataclass(frozen=True)
class LinearMap:
    """A linear layer: ``place`` names the module that it is part of, ``adapted`` whether it has LoRA experts."""

    place: str
    inputs: int
    outputs: int
    adapted: bool

    @property
    def weights(self) -> int:
        """How many weights it has, without a bias."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class ModelShape:
    """A language model, as far as memory goes.

    ``maps`` are its linear layers, poolers and heads left out; ``other`` counts all parameters beside their weights and
    the language-model head; ``vocabulary`` is that of its token embeddings. ``head``: parameters of the head that lies
    in its files; 0 where it is the embeddings. ``cache``: keys and values that decoding holds for a token.
    ``embedding``: width of the token embeddings where that is not ``width``, which states have; 0: the same.
    """

    layers: int
    width: int
    vocabulary: int
    maps: tuple[LinearMap, ...]
    other: int
    head: int = 0
    cache: int = 0
    embedding: int = 0

    @property
    def parameters(self) -> int:
        """How many parameters the model has, without the head."""
        return self.other + sum(one.weights for one in self.maps)

    def adapter_parameters(self, rank: int) -> int:
        """How many parameters LoRA experts of this total rank have."""
        return sum(rank * (one.inputs + one.outputs) for one in self.maps if one.adapted)


def model_shape(llm: PreTrainedModel, lora: LoraSettings) -> ModelShape:
    """Look at a language model without its head and before adapters are injected.

    Raises ``ModelError`` as `resolve_targets` does.
    """
    targets, _ = resolve_targets(llm, lora)
    adaptable = set(adaptable_layers(llm)[0])
    maps = []
    for name, module in llm.named_modules():
        if name in adaptable:
            inputs, outputs = _sizes(module)
            adapted = any(name == target or name.endswith(f".{target}") for target in targets)
            maps.append(LinearMap(name.rpartition(".")[0], inputs, outputs, adapted))
    # a quantised weight packs several numbers into one: it is counted by its layer's sizes
    own = {id(llm.get_submodule(name).weight) for name in adaptable}
    other = sum(parameter.numel() for parameter in llm.parameters() if id(parameter) not in own)
    config, (vocabulary, embedding) = llm.config, table_shape(llm)
    width = state_width(llm)
    head = 0 if getattr(config, "tie_word_embeddings", False) else vocabulary * width
    cache = _cache(config)
    return ModelShape(config.num_hidden_layers, width, vocabulary, tuple(maps), other, head, cache, embedding)


def _cache(config: Any) -> int:
    """Two vectors a layer, each as wide as the heads of keys and values together."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * width)


def _sizes(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a layer that `adaptable_layers` names."""
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    return int(module.in_features), int(module.out_features)
