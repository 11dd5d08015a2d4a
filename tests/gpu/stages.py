"""The stages that the tests of this folder give to a pretended GPU: small, and each as the program itself calls it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from src.core.training import LoopSettings
from src.distill.data_bridge import TeachingRows, align
from src.distill.settings import ActiveSettings, DistillSettings
from src.distill.trainer_distill import train_distilled
from src.student.base import SequenceStudent
from src.student.datamodule import StudentData
from src.student.models import require_network
from src.student.models import student_settings as settings_for
from src.student.settings import EvaluationSettings, NetworkSettings
from src.student.trainer_baseline import train_student
from tests.fixtures import cycle_data, outputs_for
from tests.gpu.pretended import PretendedGPU

LABELLED = np.array([30, 2, 17, 5, 8, 11])
EVALUATION = EvaluationSettings(ks=(1, 5), batch_size=5)
BATCH = 16
#: every term of the loss
EVERYTHING = DistillSettings(candidate_topk=4, embedding_loss_weight=0.5)


def student_settings(
    architecture: str = "sasrec", loss: str = "ce", epochs: int = 1, **changes: Any
) -> NetworkSettings:
    """A small student; keys of its loop are among the changes too."""
    names = set(LoopSettings.__dataclass_fields__)
    loop = {name: changes.pop(name) for name in list(changes) if name in names}
    own: dict[str, dict[str, Any]] = {
        "transformer": {"prior": "none", "heads": 2},
        "sasrec": {"heads": 2},
        "caser": {"filter_sizes": (2, 3), "num_filters": 3},
    }
    fields = {"width": 8, "dropout": 0.3, "negatives": 2, "loss": loss, **own.get(architecture, {}), **changes}
    found = LoopSettings(epochs=epochs, batch_size=BATCH, monitor="ndcg_5", **loop)
    return require_network(settings_for(architecture, loop=found, **fields))


def data_on(device: torch.device, train: int = 40) -> tuple[StudentData, TeachingRows]:
    """Examples and what a teacher said about some of them, as a trial has them: all on the device."""
    made = cycle_data(train=train)
    teaching = align(outputs_for(made.train, LABELLED), made.train, 4, device)
    embedding = teaching.sequence_embedding.to(device)
    return StudentData.of(made, device), replace(teaching, sequence_embedding=embedding)


def student(device: torch.device, settings: NetworkSettings, train: int = 40) -> SequenceStudent:
    """A student trained alone."""
    return train_student(settings, EVALUATION, data_on(device, train)[0], 0).student


def distilled(
    device: torch.device,
    settings: NetworkSettings,
    distill: DistillSettings = EVERYTHING,
    policy: str = "all",
    train: int = 40,
) -> SequenceStudent:
    """A student trained with a teacher."""
    data, teaching = data_on(device, train)
    active = ActiveSettings(policy=policy, rank_threshold=2)  # type: ignore[arg-type]
    return train_distilled(settings, distill, active, EVALUATION, data, teaching, 0).student


@dataclass(frozen=True)
class PerStep:
    """What one training step more costs: operations for the GPU, and waits by reason and place."""

    kernels: float
    waits: dict[str, float]


def per_step(gpu: PretendedGPU, train: Callable[[int], object], steps: int = 3) -> PerStep:
    """The difference that ``steps`` steps more make. ``train(rows)`` trains one epoch of rows / `BATCH` steps."""
    counts = list[tuple[int, Counter[str]]]()
    for rows in (2 * BATCH, (2 + steps) * BATCH):
        gpu.kernels.clear()
        gpu.waits.clear()
        train(rows)
        counts.append((gpu.kernels.total(), gpu.waits.copy()))
    (few, fewer_waits), (many, more_waits) = counts
    grown = {place: (count - fewer_waits[place]) / steps for place, count in more_waits.items()}
    return PerStep((many - few) / steps, {place: count for place, count in grown.items() if count > 0})
