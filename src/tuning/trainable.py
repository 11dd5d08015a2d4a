"""One trial: the plain distillation function under Ray Tune."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from ray import tune

from src.core.data_utils import fingerprint
from src.core.errors import AnyoError, TrainingFailed
from src.core.hardware import resolve_device
from src.core.paths import write_json, write_text
from src.core.seed import seed_everything
from src.data.examples import Examples, SequenceData
from src.data.id_map import IdMap
from src.data.teacher_outputs import TeacherOutputs
from src.distill.data_bridge import align
from src.distill.trainer_distill import DistillRun, train_distilled
from src.pipeline.settings import ExperimentSettings
from src.student.artefact import save_student
from src.student.datamodule import StudentData, TensorExamples
from src.student.losses import propensity
from src.tuning.applied import plain, trial_settings

#: what a trial leaves in ``trials/<number>/``
RESULT, STUDENT, FAILURE = "result.json", "student", "failure.txt"


@dataclass(frozen=True, eq=False)
class TrialData:
    """What every trial reads, once in Ray's object store. It holds no test example."""

    train: Examples
    validation: Examples
    id_map: IdMap
    item_counts: NDArray[np.int64]
    fingerprints: dict[str, str]
    outputs: TeacherOutputs

    @classmethod
    def of(cls, data: SequenceData, outputs: TeacherOutputs) -> TrialData:
        """From a loaded dataset and verified outputs (memory-mapped arrays are read)."""
        names = ("example_id", "candidates", "scores", "distances", "sequence_embedding", "item_embedding")
        arrays = {name: np.array(getattr(outputs, name)) for name in names}
        loaded = TeacherOutputs(**arrays, manifest=dict(outputs.manifest))
        return cls(data.train, data.validation, data.id_map, data.item_counts, data.fingerprints(), loaded)

    def tensors(self, device: torch.device) -> StudentData:
        """Copies on the trial's device: what Ray shares is writable memory, and one trial must not change another's."""
        return StudentData(
            train=TensorExamples.of(self.train, device),
            validation=TensorExamples.of(self.validation, device),
            num_items=self.id_map.num_items,
            history_length=int(self.train.history.shape[1]),
            propensity=propensity(torch.tensor(self.item_counts)).float().to(device),
        )


class Trainable:
    """Importable and picklable, as Ray needs; called once a trial in a reused worker."""

    __name__ = "distill"

    def __init__(self, settings: ExperimentSettings, metric: str, folder: Path) -> None:
        # plain data: pydantic's generated classes do not all survive pickling between processes
        self.settings, self.metric, self.folder = plain(settings), metric, folder

    def __call__(self, config: Mapping[str, Any], data: TrialData) -> None:
        """Train the student of ``config = {number, values}`` and leave its result in the trial's folder."""
        number = int(config["number"])
        folder = self.folder / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(folder / "trial.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        log = logging.getLogger("src")
        log.addHandler(handler)
        log.setLevel(logging.DEBUG)
        try:
            self._train(number, config["values"], data, folder)
        except (AnyoError, ValidationError) as error:
            # without a result this trial counts as failed; raised, the error would also cost its worker
            write_text(folder / FAILURE, f"{error}\n")
        finally:
            log.removeHandler(handler)
            handler.close()

    def _train(self, number: int, values: Mapping[str, Any], data: TrialData, folder: Path) -> None:
        base = TypeAdapter(ExperimentSettings).validate_python(self.settings)
        settings = trial_settings(base, number, values)
        device = resolve_device(settings.runtime.device)
        _clean_worker(settings.seed, device)
        students = data.tensors(device)
        teaching = align(data.outputs, data.train, settings.distill.candidate_topk, device)

        def report(epoch: int, metrics: Mapping[str, float]) -> None:
            value = float(metrics[self.metric])
            if not math.isfinite(value):
                raise TrainingFailed(f"{self.metric} of epoch {epoch} is {value}")
            tune.report({**{name: float(v) for name, v in metrics.items()}, "epoch": epoch, "objective": value})

        run = train_distilled(
            settings.student,
            settings.distill,
            settings.active,
            settings.evaluation,
            students,
            teaching,
            settings.seed,
            report,
        )
        _save(folder, settings, data, run, values)


def _clean_worker(seed: int, device: torch.device) -> None:
    """A reused worker must not remember the trial before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    seed_everything(seed, "worker")


def _save(
    folder: Path, settings: ExperimentSettings, data: TrialData, run: DistillRun, values: Mapping[str, Any]
) -> None:
    fit = asdict(run.fit)
    weights = fingerprint(*(value for _, value in sorted(run.student.state_dict().items())))
    extra = {"fit": fit, "values": dict(values), "weights": weights}
    save_student(folder / STUDENT, run.student, settings.student, data.id_map, data.fingerprints, extra)
    # the driver reads this file, not Ray's last result: it is there only when the trial really ended
    write_json(folder / RESULT, {"values": dict(values), "fit": fit, "weights": weights})
