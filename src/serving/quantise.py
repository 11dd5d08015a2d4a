"""A graph's weights as 8-bit whole numbers: a quarter of the size, at a loss that is measured."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic


def quantise_graph(path: Path) -> None:
    """Replace a graph, and the file of its weights where it has one, by its dynamic int8 form."""
    outside = path.with_name(f"{path.name}.data")
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)  # it recommends a preparation that these graphs do not need
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            small = Path(folder) / path.name
            quantize_dynamic(path, small, weight_type=QuantType.QInt8, use_external_data_format=outside.exists())
            for file in Path(folder).iterdir():
                file.replace(path.with_name(file.name))
    finally:
        root.setLevel(before)
    if outside.exists() and not _reads(path, outside.name):
        outside.unlink()


def _reads(path: Path, name: str) -> bool:
    """Whether a graph's weights lie in the file of that name beside it."""
    graph = onnx.load(path, load_external_data=False).graph
    return any(entry.value == name for tensor in graph.initializer for entry in tensor.external_data)
