"""The plain training function of each stage, in the one shape that a trial needs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from src.core.checkpoints import Checkpoint, snapshot
from src.core.data_utils import fingerprint
from src.core.training import FitResult, Report
from src.distill.trainer_distill import train_distilled
from src.pipeline.cache import StageCache
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages
from src.student.artefact import save_student
from src.student.models import SequenceStudent
from src.student.trainer_baseline import train_student
from src.teacher.factory import save_teacher
from src.teacher.training import train_teacher
from src.tuning.search_space import Stage
from src.tuning.shared_data import SharedData


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training left: ``save(folder)`` writes the best epoch's model there."""

    fit: FitResult
    model: nn.Module
    save: Callable[[Path], None]

    def costs(self, names: set[str]) -> dict[str, float]:
        """Those of `search_space.COSTS` that are asked for."""
        found: dict[str, float] = {}
        if "parameters" in names:
            found["parameters"] = float(sum(p.numel() for p in self.model.parameters() if p.requires_grad))
        if "seconds" in names:
            found["seconds"] = self.fit.seconds
        if "latency_ms" in names:
            assert isinstance(self.model, SequenceStudent)
            found["latency_ms"] = latency_ms(self.model)
        return found

    @property
    def weights(self) -> str:
        """Fingerprint of everything that was trained."""
        return fingerprint(*(value.cpu() for _, value in sorted(snapshot(self.model).items())))


def train_stage(
    stage: Stage,
    settings: ExperimentSettings,
    data: SharedData,
    device: torch.device,
    report: Report,
    checkpoint: Checkpoint,
) -> Trained:
    """Train a stage's model; see `train_student`, `train_distilled` and `train_teacher` for what they raise."""
    match stage:
        case "teacher":
            return _teacher(settings, report, checkpoint)
        case "student":
            run = train_student(settings.student, settings.evaluation, data.students, settings.seed, report, checkpoint)
            student, fit = run.student, run.fit
        case "distill":
            taught = data.taught(settings.distill.candidate_topk)
            distilled = train_distilled(
                settings.student, settings.distill, settings.active, settings.evaluation, data.students, taught,
                settings.seed, report, checkpoint,
            )  # fmt: skip
            student, fit = distilled.student, distilled.fit

    def save(folder: Path) -> None:
        save_student(folder, student, settings.student, data.id_map, data.fingerprints, {"fit": asdict(fit)})

    return Trained(fit, student, save)


def _teacher(settings: ExperimentSettings, report: Report, checkpoint: Checkpoint) -> Trained:
    """The language model and the encoder come from the stage cache, where the driver has put them."""
    stages = Stages(settings, StageCache(settings.runtime.cache))
    run = train_teacher(
        settings.teacher, stages.data, stages.load_encoder(), stages.llm_folder, stages.device, settings.seed,
        settings.evaluation, report, checkpoint,
    )  # fmt: skip
    return Trained(run.fit, run.teacher, lambda folder: save_teacher(folder, run.teacher, stages.data, run.summary()))


@torch.no_grad()
def latency_ms(student: SequenceStudent, repeats: int = 50) -> float:
    """Median milliseconds to score one full history against the whole catalogue."""
    device = next(student.parameters()).device
    length = student.history_length
    history = torch.arange(length, device=device).remainder(student.num_items).unsqueeze(0)
    lengths, seconds = torch.tensor([length], device=device), list[float]()
    for _ in range(repeats):
        start = time.perf_counter()
        student(history, lengths)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) * 1000
