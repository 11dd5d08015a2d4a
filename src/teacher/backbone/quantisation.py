"""Language models in 8 or 4 bits through bitsandbytes: less memory for the frozen weights, adapters in full precision.

4 bits are NF4 with double quantisation, multiplied in bfloat16 (QLoRA, Dettmers et al., 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PretrainedConfig

from src.core.errors import ConfigError, ModelError, Problem
from src.teacher.settings import NOT_QUANTISED, Quantise

_FIELD = "teacher.quantise"
_INSTALL = "ANYO_EXTRAS=quantised ./env_shell/setup_env.sh (in the container: poetry install -E quantised)"


def check_quantise(quantise: Quantise, device: torch.device) -> None:
    """Raises ``ConfigError`` when this machine cannot load a model in this form: no CUDA device, no bitsandbytes."""
    if quantise == NOT_QUANTISED:
        return
    problems = []
    if device.type != "cuda":
        rule = f"needs a CUDA device, and this run computes on {device.type}"
        problems.append(Problem(_FIELD, quantise, rule, "run it on a GPU, or set teacher.quantise=none"))
    if find_spec("bitsandbytes") is None:
        rule = "needs bitsandbytes, which is not installed"
        problems.append(Problem(_FIELD, quantise, rule, _INSTALL))
    if problems:
        raise ConfigError(problems)


def stored_form(config: PretrainedConfig) -> str:
    """How a model's weights lie on the disk: ``none`` (not quantised), ``4bit``, ``8bit``, or another method's name."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return NOT_QUANTISED
    content: Mapping[str, Any] = found if isinstance(found, Mapping) else found.to_dict()
    method = content.get("quant_method")
    if str(getattr(method, "value", method)) != "bitsandbytes":
        return str(getattr(method, "value", method))
    return "4bit" if content.get("load_in_4bit") else "8bit"


def check_stored_form(name: str, config: PretrainedConfig, quantise: Quantise) -> None:
    """Refuse a model that is already quantised, and otherwise than is asked for.

    Args:
        name: folder or hub id.
        config: the model's.
        quantise: bits that are asked for.

    Raises:
        ModelError: the two differ.
    """
    stored = stored_form(config)
    if stored in (NOT_QUANTISED, quantise):
        return
    if stored in ("4bit", "8bit"):
        step = f"set {_FIELD}={stored}, or name the folder of the model that is not quantised"
    else:
        step = f"name the folder or hub id of the model that is not quantised; {_FIELD} makes 8bit or 4bit of it"
    raise ModelError.one("teacher.llm", name, f"is already quantised ({stored}), and {_FIELD} is {quantise}", step)


def loading_arguments(config: PretrainedConfig, quantise: Quantise, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` needs besides: nothing for a model that is not quantised.

    Args:
        config: the model's own.
        quantise: in which form its weights are wanted.
        device: where its weights are wanted.
    """
    if quantise == NOT_QUANTISED:
        return {}
    # a quantised model is put together on its device and never moved
    place = {"device_map": {"": device}}
    # what is stored quantised brings its own configuration
    return place if stored_form(config) != NOT_QUANTISED else {**place, "quantization_config": bits_config(quantise)}


def bits_config(quantise: Quantise) -> BitsAndBytesConfig:
    """bitsandbytes' settings for 8 or 4 bits."""
    if quantise == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
