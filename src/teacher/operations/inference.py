"""A trained teacher as the pipeline uses it, whatever its objective: it labels, it ranks, its answers are judged."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from src.data.examples import Examples, SequenceData
from src.student.settings import EvaluationSettings
from src.teacher.factory import load_teacher
from src.teacher.ilora_model import GatedTeacher
from src.teacher.labelling.labels import Labeller
from src.teacher.objective import objective_of
from src.teacher.operations.teacher_check import RankedExamples
from src.teacher.settings import TeacherSettings


class TrainedTeacher(Protocol):
    """A teacher and its way of ranking the catalogue."""

    @property
    def model(self) -> GatedTeacher:
        """The teacher itself."""

    def labeller(self) -> Labeller:
        """What turns training examples into labels."""

    def ranking(self, examples: Examples, evaluation: EvaluationSettings) -> RankedExamples:
        """Rank the targets of held-out examples; of a teacher that writes, also say which answers were right."""


def load_trained(
    folder: Path, settings: TeacherSettings, data: SequenceData, device: torch.device, seed: int
) -> TrainedTeacher:
    """Load a saved teacher, which ranks and labels as the settings say.

    Args:
        folder: the saved teacher.
        settings: its objective, and how it is run now (see `load_teacher`).
        data: the dataset, split.
        device: where it computes.
        seed: that of the run that trained it.

    Raises:
        ArtefactError: as `load_teacher`.
    """
    teacher = load_teacher(folder, settings, data, device)
    return objective_of(settings.objective).trained(teacher, settings, seed)
