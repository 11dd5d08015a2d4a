"""One module per source format. An adapter turns files into `Interactions`, or `PreSplit` where the source is split.

A new format is one module that ends with a call of `register`; nothing lists the adapters.
"""

from __future__ import annotations

from src.data.adapters.registry import ADAPTERS, Adapter, find_adapter, register

__all__ = ["ADAPTERS", "Adapter", "find_adapter", "register"]
