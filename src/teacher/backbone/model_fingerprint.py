"""What identifies a language model: the content of its files, or a hub id with its revision."""

from __future__ import annotations

import json
from pathlib import Path

from src.core.data_utils import fingerprint, fingerprint_file
from src.teacher.backbone.model_config import read_model_config
from src.teacher.backbone.model_files import weight_files
from src.teacher.backbone.transformers_calls import explained, is_local

_TOKENIZER = ("token*", "vocab*", "merges*", "added_tokens*", "special_tokens*", "*.model")


_NAMES = ("_name_or_path", "name_or_path")


_WHOLE_FILE = 1 << 28  # bytes; a larger weights file is known by its size, its header and samples


_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16


def fingerprint_llm(name_or_path: str) -> str:
    """Identifies a model: the content of its config, tokenizer (text or SentencePiece) and weights, or a hub id with
    its revision.

    A weights file above 256 MiB is known by its size, its first and last part, and 64 samples between them. Raises
    ``ModelError`` when it cannot be read.
    """
    if not is_local(name_or_path):
        config = read_model_config(name_or_path)
        return fingerprint(name_or_path, getattr(config, "_commit_hash", None))
    folder = Path(name_or_path)
    with explained(name_or_path, "files"):
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
