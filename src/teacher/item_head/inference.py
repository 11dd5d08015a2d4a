"""A trained teacher with an item head, as the pipeline uses it."""

from __future__ import annotations

from dataclasses import dataclass

from src.data.examples import Examples
from src.student.settings import EvaluationSettings
from src.teacher.ilora_model import ILoRATeacher
from src.teacher.labelling.labels import Labeller, item_head_labeller
from src.teacher.operations.teacher_check import RankedExamples, teacher_ranker
from src.teacher.settings import ExportSettings


@dataclass(frozen=True, eq=False)
class TrainedItemTeacher:
    """A teacher with an item head."""

    model: ILoRATeacher
    export: ExportSettings

    def labeller(self) -> Labeller:
        """See `TrainedTeacher`."""
        return item_head_labeller(self.model, self.export)

    def ranking(self, examples: Examples, evaluation: EvaluationSettings) -> RankedExamples:
        """See `TrainedTeacher`."""
        return teacher_ranker(self.model, self.export.batch_size, evaluation.mask_history)(examples)
