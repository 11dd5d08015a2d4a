"""What lies in a model's folder, looked at before transformers is asked to read it.

Folders that people have are often not what they seem: an adapter without its base model, a clone whose large files are
still Git LFS pointers, a model that is defined by code of its own. Each is named for what it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from src.core.errors import ModelError
from src.teacher.backbone.transformers_calls import FIELD, explained

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_LFS = b"version https://git-lfs"
_SHOWN = 3
#: whole numbers of a config and the largest that can be meant: a model is laid out, without weights, before anything
#: else, and a number beyond these would take all memory or never end
_LARGEST = {
    "num_hidden_layers": 2_000,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "vocab_size": 1 << 26,
}


def check_folder(folder: Path) -> None:
    """Raise ``ModelError`` for a folder that holds something else than a whole model which transformers knows.

    That is: Git LFS pointers in place of files, a PEFT adapter, a folder around the model's own, a model in the form of
    another program, or one with code of its own. A damaged file is for the reader of that file to tell.
    """
    name = str(folder)
    _refuse_pointers(folder, name)
    if (folder / ADAPTER_CONFIG).is_file():
        base = _content(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
        step = f"name its base model, {base}," if isinstance(base, str) and base else "name its base model"
        rule = "is the folder of an adapter (adapter_config.json), not of a whole model"
        raise ModelError.one(FIELD, name, rule, f"{step} or merge the two (merge_and_unload) and save the result")
    if not (folder / CONFIG).exists():
        raise _without_config(folder)
    config = _content(folder / CONFIG)
    if config.get("auto_map") and config.get("model_type") not in CONFIG_MAPPING_NAMES:
        raise own_code(name, str(config.get("model_type")))


def _without_config(folder: Path) -> Exception:
    """The error for a folder that is no model's: a hub's cache or sentence-transformers' has the model further in."""
    inner = [file.parent for depth in ("*", "*/*") for file in sorted(folder.glob(f"{depth}/{CONFIG}"))]
    models = [str(place) for place in inner if "model_type" in _content(place / CONFIG)]
    rule, step = f"has no {CONFIG}", f"name a folder with {CONFIG}, tokenizer and weights (save_pretrained writes one)"
    if models:
        step = f"the model lies further in: {FIELD}={models[0]}"
    for pattern, whose in (("*.gguf", "llama.cpp's (GGUF)"), ("consolidated.*.pth", "its makers' own")):
        if not models and any(folder.glob(pattern)):
            rule = f"{rule}: its weights are in another form, {whose}"
            step = "name the folder of the same model in the form of transformers, which can convert it"
    return ModelError.one(FIELD, str(folder), rule, step)


def own_code(name: str, family: str) -> Exception:
    """The error for a model that only its own code can build. Such code is never asked for, and never run."""
    rule = f"{family} needs code of its own (auto_map), and such code is not run here"
    return ModelError.one(FIELD, name, rule, "choose a model whose family transformers itself knows")


def _refuse_pointers(folder: Path, name: str) -> None:
    pointers = [file.name for file in sorted(folder.iterdir()) if file.is_file() and _is_pointer(file)]
    if pointers:
        more = f" and {len(pointers) - _SHOWN} more" if len(pointers) > _SHOWN else ""
        rule = f"{', '.join(pointers[:_SHOWN])}{more}: Git LFS pointers, not the files themselves"
        raise ModelError.one(
            FIELD, name, rule, "run `git lfs install` and `git lfs pull` in the folder, or copy the files"
        )


def _is_pointer(file: Path) -> bool:
    try:
        with file.open("rb") as handle:
            return handle.read(len(_LFS)) == _LFS
    except OSError:
        return False


def _content(file: Path) -> dict[str, Any]:
    """A JSON object; nothing where there is none: whoever needs the file says so."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def check_object(folder: Path) -> None:
    """Raise ``ModelError`` where config.json is JSON, but no object."""
    file = folder / CONFIG
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # transformers says what is wrong
    if not isinstance(content, dict):
        rule = f"its config.json cannot be read (it holds a {type(content).__name__}, not an object)"
        raise ModelError.one(FIELD, str(folder), rule, "copy the model again")


def check_numbers(name: str, config: PretrainedConfig) -> None:
    """Raise ``ModelError`` for sizes that no model has."""
    for key, largest in _LARGEST.items():
        value = getattr(config, key, None)
        # lists, one number a layer, are for the family to judge
        if isinstance(value, (int, float)) and not (value == int_of(value) and 1 <= value <= largest):
            rule = f"its config.json has {key} = {value!r}; it must be a whole number from 1 to {largest:,}"
            raise ModelError.one(FIELD, name, rule, "copy config.json again")


def int_of(value: float) -> int | None:
    """The whole number; None for nan and infinities."""
    return int(value) if value == value and abs(value) != float("inf") else None


def weight_files(folder: Path) -> list[Path]:
    """The weight files that a model folder has or, by its index, should have; empty when there are none."""
    for name in WEIGHT_FILES:
        file = folder / name
        if not file.is_file():
            continue
        if not name.endswith(".index.json"):
            return [file]
        with explained(str(folder), name):
            index: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return [folder / shard for shard in sorted(set(index["weight_map"].values()))]
    return []
