"""The exported graph says what PyTorch says: every student, prior, batch size and history length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from src.serving.catalogue import padded
from src.serving.export import TOLERANCE
from src.serving.graph import export_graph
from src.student.base import Recommender
from src.student.models import architectures
from tests.serving.finished import NUM_ITEMS, by_item, student

STUDENTS: dict[str, dict[str, Any]] = {
    "sasrec": {"architecture": "sasrec", "width": 8},
    "sasrec + linear": {"architecture": "sasrec", "width": 8, "heads": 2, "prior": "linear"},
    "gru4rec + transitions": {"architecture": "gru4rec", "width": 8, "prior": "transitions"},
    "caser + popularity": {"architecture": "caser", "width": 8, "prior": "popularity"},
    "transformer": {"architecture": "transformer", "width": 8, "heads": 2, "blocks": 2, "tied": False},
    "transformer + linear": {"architecture": "transformer", "width": 8, "window": 4, "prior": "linear"},
    "transformer + ease": {"architecture": "transformer", "width": 8, "prior": "ease"},
    "popularity": {"architecture": "popularity"},
    "transitions": {"architecture": "transitions"},
    "ease": {"architecture": "ease"},
    "linear": {"architecture": "linear"},
    "text_linear": {"architecture": "text_linear"},
    # a catalogue that is large beside the window takes another way through the matrix
    "linear, many items": {"architecture": "linear", "window": 5, "num_items": 90},
}
HISTORIES = [[], [3], [1, 2], [5, 5, 5, 7], list(range(NUM_ITEMS)), [4, 1] * 120]


def built(fields: dict[str, Any]) -> Recommender:
    """The student of these fields."""
    prior = fields.get("prior", "none")
    return student(**{**fields, "prior": prior})


def said(model: Recommender, histories: list[list[int]]) -> np.ndarray:
    """PyTorch's scores ``[B, V]``, each history as the student wants to see it."""
    wide = max(1, model.history_length)
    table = np.full((len(histories), wide), model.num_items)
    for row, history in enumerate(histories):
        latest = history[-wide:]
        table[row, : len(latest)] = latest
    length = torch.tensor([min(len(history), wide) for history in histories])
    with torch.no_grad():
        scores: np.ndarray = model(torch.from_numpy(table), length).float().numpy()
    return scores


def test_every_architecture_is_tried() -> None:
    assert {fields["architecture"] for fields in STUDENTS.values()} == set(architectures())


#: pairs of a network and a prior that others have one by one
PAIRS = {"sasrec + linear", "transformer + ease"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.nightly] if name in PAIRS else []) for name in STUDENTS]
)
def test_a_graph_says_what_the_student_says(name: str, tmp_path: Path) -> None:
    fields = dict(STUDENTS[name])
    model = built(fields)
    num_items = model.num_items
    export_graph(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    wanted = said(model, HISTORIES)
    together = [HISTORIES, *([history] for history in HISTORIES), HISTORIES[:2], [HISTORIES[5]] * 17]
    for batch in together:
        history, length = padded(batch, num_items)
        asked = {"history": history, "length": length, "k": np.array([num_items])}
        items, scores = session.run(["items", "scores"], {**asked, "exclude_seen": np.array([False])})
        assert (np.sort(items, axis=1) == np.arange(num_items)).all()
        assert (np.diff(scores, axis=1) <= 0).all()
        expected = np.stack([wanted[HISTORIES.index(one)] for one in batch])
        assert np.abs(by_item(items, scores) - expected).max() <= TOLERANCE
        items, scores = session.run(["items", "scores"], {**asked, "exclude_seen": np.array([True])})
        for row, one in enumerate(batch):
            excluded = set(items[row][np.isneginf(scores[row])].tolist())
            assert excluded == set(one)
            kept = [item for item in range(num_items) if item not in excluded]
            assert by_item(items, scores)[row][kept] == pytest.approx(expected[row][kept], abs=TOLERANCE)


@pytest.mark.slow
def test_large_weights_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.serving.graph.MOST_INSIDE", 100)
    model = student("popularity", num_items=500)
    export_graph(model, tmp_path / "model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    history, length = padded([[1]], 500)
    asked = {"history": history, "length": length, "k": np.array([1]), "exclude_seen": np.array([False])}
    assert session.run(["items"], asked)[0][0, 0] == int(np.argmax(said(model, [[1]])))
