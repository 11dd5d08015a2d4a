"""A student as one ONNX graph: histories and lengths in, the best items and their scores out.

The network, its prior and the choice of the best items are all in the graph, so whoever runs it needs neither this
project nor PyTorch.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from src.serving.graph_names import EXCLUDE_SEEN, HISTORY, ITEMS, LENGTH, SCORES, K
from src.student.base import Recommender, SequenceStudent

#: weights beyond this many bytes lie in a file beside the graph: a protocol buffer holds 2 GB at most
MOST_INSIDE = 2**30
_OPSET = 20
_ALL = "catalogue_scores"
#: who tells of every node that a graph's optimiser touches
_TALKATIVE = ("torch.onnx", "onnxscript", "onnx_ir")


class _AnyWidth(nn.Module):
    """A student whose histories may be of any width: it always sees its own, whatever is longer or shorter."""

    def __init__(self, student: Recommender) -> None:
        super().__init__()
        self.student = student
        self.width = max(1, student.history_length)
        self.padding_id = student.padding_id

    def forward(self, history: Tensor, length: Tensor) -> Tensor:
        """Scores ``[B, V]`` float32 of histories ``[B, L]``, padded on the right, with lengths ``[B]``."""
        kept = length.clamp(max=self.width)
        place = torch.arange(self.width)
        at = ((length - kept).unsqueeze(1) + place).clamp(max=history.shape[1] - 1)
        latest = history.gather(1, at).masked_fill(place >= kept.unsqueeze(1), self.padding_id)
        scores: Tensor = self.student(latest, kept)
        return scores.float()


def export_graph(student: Recommender, path: Path) -> None:
    """Write a student as ``path``, and ``path.data`` beside it where its weights are too large for one file.

    The graph's inputs are ``history [batch, places]`` int64 (padded on the right with V), ``length [batch]`` int64,
    ``k [1]`` int64 and ``exclude_seen [1]`` bool; its outputs ``items [batch, k]`` int64 and ``scores [batch, k]``
    float32, best first. An item that may not be recommended has the score −∞.

    Args:
        student: on the CPU.
        path: of the graph.
    """
    outside = _bytes_of(student) > MOST_INSIDE
    _export_scores(student, path, outside)
    model = onnx.load(path, load_external_data=False)
    _choose_best(model, student.num_items)
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path))


def _bytes_of(student: Recommender) -> int:
    """How much memory a student's numbers take, its prior's included."""
    tensors = [*student.parameters(), *student.buffers()]
    if isinstance(student, SequenceStudent) and student.prior is not None:
        tensors += student.prior.buffers()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _export_scores(student: Recommender, path: Path, outside: bool) -> None:
    """The student's scores of the whole catalogue as a graph."""
    # three rows and five places stand for any number; what is traced must hold a full and an empty history
    history, length = torch.zeros(3, 5, dtype=torch.int64), torch.tensor([5, 2, 0])
    batch, places = torch.export.Dim("batch"), torch.export.Dim("places")
    with _quiet(*_TALKATIVE), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _AnyWidth(student).eval(),
            (history, length),
            dynamo=True,
            opset_version=_OPSET,
            dynamic_shapes={HISTORY: {0: batch, 1: places}, LENGTH: {0: batch}},
            input_names=[HISTORY, LENGTH],
            output_names=[_ALL],
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=outside)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Nothing below an error from these loggers and those under them."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _choose_best(model: onnx.ModelProto, num_items: int) -> None:
    """Let the graph name the k best items instead of all scores, without those of the history where that is asked."""
    graph = model.graph
    constants = {
        "best_zero": np.array([0], np.int64),
        "best_one": np.array([1], np.int64),
        "best_items": np.array([num_items], np.int64),
        "best_never": np.array([-np.inf], np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.input.append(helper.make_tensor_value_info(K, TensorProto.INT64, [1]))
    graph.input.append(helper.make_tensor_value_info(EXCLUDE_SEEN, TensorProto.BOOL, [1]))
    node = helper.make_node
    graph.node.extend(
        [
            node("Shape", [HISTORY], ["best_shape"]),
            node("Expand", ["best_never", "best_shape"], ["best_nevers"]),
            # the padding id V gets a column of its own, which is cut off again
            node("Slice", [_ALL, "best_zero", "best_one", "best_one"], ["best_first"]),
            node("Concat", [_ALL, "best_first"], ["best_wide"], axis=1),
            node("ScatterElements", ["best_wide", HISTORY, "best_nevers"], ["best_marked"], axis=1),
            node("Slice", ["best_marked", "best_zero", "best_items", "best_one"], ["best_unseen"]),
            node("Where", [EXCLUDE_SEEN, "best_unseen", _ALL], ["best_allowed"]),
            node("TopK", ["best_allowed", K], [SCORES, ITEMS], axis=1, largest=1, sorted=1),
        ]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(ITEMS, TensorProto.INT64, ["batch", "k"]))
    graph.output.append(helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, ["batch", "k"]))
