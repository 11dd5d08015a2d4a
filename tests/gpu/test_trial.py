"""A whole trial of a search in its worker, on a pretended GPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.core.hardware import share_compute
from src.core.metrics import metric_names
from src.core.paths import REPOSITORY
from src.core.settings import nested_plain
from src.core.training import LoopSettings
from src.data.dataset import load_dataset
from src.data.settings import DatasetSettings
from src.data.teacher_outputs import TeacherOutputs
from src.distill.settings import ActiveSettings, DistillSettings
from src.pipeline.settings import ExperimentSettings, RuntimeSettings
from src.student.artefact import load_student
from src.student.baselines import BaselineSettings
from src.student.models import require_network, student_settings
from src.student.settings import EvaluationSettings
from src.teacher.settings import TeacherSettings
from src.tuning import gpu_probe, trainable
from src.tuning.dispatch import MODEL
from src.tuning.gpu_probe import GpuNeed, GpuProbe
from src.tuning.resources import Resources
from src.tuning.search_space import SearchSpace, Stage
from src.tuning.shared_data import SharedData
from src.tuning.space_document import load_search_space
from src.tuning.store import Store
from src.tuning.trainable import TOKEN, Trainable
from src.tuning.trial_values import configured_trial
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
    SharedData.of(data, {"llm": outputs}).save(made)
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
        student=student_settings("sasrec", width=16, loop=LoopSettings(epochs=2, batch_size=256)),
        teacher=TeacherSettings(),
        distill=DistillSettings(),
        active=ActiveSettings(),
        evaluation=EvaluationSettings(),
        baselines=BaselineSettings(),
        runtime=RuntimeSettings(device=device, cache=tmp_path / "cache"),
        seed=0,
    )


def space(asked: ExperimentSettings) -> SearchSpace:
    """The one of the main job."""
    document = REPOSITORY / "search_spaces" / "distill.yaml"
    return load_search_space(document, nested_plain(asked), metric_names(asked.evaluation.ks))


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0", "cuda:1"])
def test_a_trial_is_measured_and_trained(
    store: Store, told: list[Mapping[str, Any]], tmp_path: Path, device: str
) -> None:
    asked = settings(device, tmp_path)
    values = configured_trial(space(asked), asked)
    # whatever the GPU is called outside, a worker sees one
    with PretendedGPU(free=60 * 2**30, count=1) as gpu:
        probe = GpuProbe(nested_plain(asked), "distill", values, store)
        assert probe.measure() == GpuNeed(gpu.peak, 60 * 2**30)
        assert probe.rate(0.0) > 0
    share = Resources(1.0, 0.25, free=60 * 2**30)
    with PretendedGPU(count=1) as gpu:
        trial = Trainable(asked, space(asked), store, "mine", 0.0)
        trial({"number": 0, "values": dict(values), "folder": "0", "share": share.share(0), "memory": share.memory(0)})
    assert [report["kind"] for report in told] == ["epoch", "epoch", "done"]
    # a quarter of what is free, less the 600 MiB of a CUDA context
    assert gpu.limits == [pytest.approx((15 - 600 / 2**10) / 80)]
    load_student(Path(store.root) / "0" / MODEL, load_dataset(DATASET))


def test_a_whole_gpu_has_no_limit(store: Store, told: list[Mapping[str, Any]], tmp_path: Path) -> None:
    asked = settings("auto", tmp_path)
    with PretendedGPU() as gpu:
        trial = Trainable(asked, space(asked), store, "mine", 0.0)
        values = configured_trial(space(asked), asked)
        trial({"number": 0, "values": dict(values), "folder": "0", "share": 1.0, "memory": 0})
    assert gpu.limits == [1.0]


@pytest.mark.parametrize("stage", ["student", "distill"])
def test_a_probe_trains_few_steps_on_the_data_of_all(store: Store, tmp_path: Path, stage: Stage) -> None:
    """Its data lies on the GPU as a trial's does; it reads the first rows of it, and one batch of validation."""
    asked = settings("auto", tmp_path)
    student = require_network(asked.student)
    asked = replace(asked, student=replace(student, loop=replace(student.loop, batch_size=8)))
    asked = replace(asked, evaluation=replace(asked.evaluation, batch_size=16))
    ranked, trained = list[int](), list[int]()
    with PretendedGPU():
        probe = GpuProbe(nested_plain(asked), stage, {}, store)
        train = gpu_probe.train_stage

        def counted(*arguments: Any) -> object:
            trained.append(len(arguments[2].students.train))
            ranked.append(len(arguments[2].students.validation))
            return train(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gpu_probe, "train_stage", counted)
            probe.measure()
    assert (trained, ranked) == ([32 * 8], [16])


def test_a_probe_of_a_student_in_closed_form_fits_it_whole(store: Store, tmp_path: Path) -> None:
    asked = replace(settings("auto", tmp_path), student=student_settings("transitions"))
    with PretendedGPU() as gpu:
        probe = GpuProbe(nested_plain(asked), "student", {}, store)
        assert probe.measure() == GpuNeed(gpu.peak, gpu.free)
        assert probe.rate(0.0) > 0


def test_a_probe_that_runs_out_of_memory_brings_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PretendedGPU():
        probe = GpuProbe(nested_plain(settings("auto", tmp_path)), "student", {}, store)

        def full(*_: object) -> None:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")

        monkeypatch.setattr(gpu_probe, "train_stage", full)
        assert probe.rate(1.0) == 0.0


def test_a_share_tells_mps_before_the_gpu_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    monkeypatch.delenv("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", raising=False)
    told = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
    with PretendedGPU():
        share_compute(0.25)
        assert told not in os.environ  # no daemon listens
        (tmp_path / "control").touch()
        for share, percentage in ((0.125, "25"), (1 / 3, "67"), (0.75, "100")):
            monkeypatch.delenv(told, raising=False)
            share_compute(share)
            assert os.environ[told] == percentage
        monkeypatch.delenv(told)
        share_compute(1.0)
        torch.cuda.init()
        share_compute(0.25)
        assert told not in os.environ
