"""The names of an exported graph's inputs and outputs: who only names them needs no ONNX."""

from __future__ import annotations

HISTORY, LENGTH, K, EXCLUDE_SEEN = "history", "length", "k", "exclude_seen"
ITEMS, SCORES = "items", "scores"
