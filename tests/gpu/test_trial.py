"""A whole trial of a search in its worker, on a pretended GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.core.metrics import metric_names
from src.core.paths import REPOSITORY
from src.core.training import LoopSettings
from src.data.dataset import load_dataset
from src.data.settings import DatasetSettings
from src.data.teacher_outputs import TeacherOutputs
from src.distill.settings import ActiveSettings, DistillSettings
from src.pipeline.settings import ExperimentSettings, RuntimeSettings
from src.student.artefact import load_student
from src.student.settings import EvaluationSettings, StudentSettings
from src.teacher.settings import TeacherSettings
from src.tuning import trainable
from src.tuning.applied import configured_trial, plain
from src.tuning.dispatch import MODEL
from src.tuning.resources import measure
from src.tuning.search_space import SearchSpace, load_search_space
from src.tuning.shared_data import SharedData
from src.tuning.store import Store
from src.tuning.trainable import TOKEN, Trainable
from tests.gpu.pretended import PretendedGPU

DATASET = DatasetSettings(sample_users=60, sample_items=60, sample_interactions=1500)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """With data and a teacher's outputs in it."""
    data = load_dataset(DATASET)
    rows = (data.train.target[:, None] + np.arange(20)) % data.num_items
    distances = np.tile(np.linspace(0.1, 4, 20, dtype=np.float32), (len(rows), 1))
    embedding = np.random.default_rng(0).normal(size=(data.num_items, 8)).astype(np.float32)
    outputs = TeacherOutputs(data.train.example_id, rows, -distances, distances, distances[:, :3], embedding, {})
    made = Store(str(tmp_path))
    SharedData.of(data, outputs).save(made)
    made.write(TOKEN, b"mine")
    return made


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """What the worker reports."""
    messages: list[Mapping[str, Any]] = []
    monkeypatch.setattr(trainable, "tell", messages.append)
    return messages


def settings(device: str, tmp_path: Path) -> ExperimentSettings:
    """Two epochs."""
    return ExperimentSettings(
        dataset=DATASET,
        student=StudentSettings(width=16, loop=LoopSettings(epochs=2, batch_size=256)),
        teacher=TeacherSettings(),
        distill=DistillSettings(),
        active=ActiveSettings(),
        evaluation=EvaluationSettings(),
        runtime=RuntimeSettings(device=device, cache=tmp_path / "cache"),
        seed=0,
    )


def space(asked: ExperimentSettings) -> SearchSpace:
    """The one of the main job."""
    document = REPOSITORY / "search_spaces" / "distill.yaml"
    return load_search_space(document, plain(asked), metric_names(asked.evaluation.ks))


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
def test_a_trial_is_measured_and_trained(
    store: Store, told: list[Mapping[str, Any]], tmp_path: Path, device: str
) -> None:
    asked = settings(device, tmp_path)
    values = configured_trial(space(asked), asked)
    with PretendedGPU() as gpu:
        found = measure(plain(asked), "distill", values, store)
        assert (found.peak, found.total) == (gpu.peak, gpu.total)
    with PretendedGPU() as gpu:
        trial = Trainable(asked, space(asked), store, "mine", 0.0)
        trial({"number": 0, "values": dict(values), "folder": "0", "share": 0.25})
    assert [report["kind"] for report in told] == ["epoch", "epoch", "done"]
    # a quarter, less the 600 MiB of a CUDA context
    assert gpu.limits == [pytest.approx(0.25 - 600 / 2**10 / 80)]
    load_student(Path(store.root) / "0" / MODEL, load_dataset(DATASET))
