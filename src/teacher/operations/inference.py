"""A trained teacher as the pipeline uses it, whatever its objective: it labels, it ranks, its answers are judged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from src.data.candidates import CandidateLists, draw_candidate_lists
from src.data.examples import Examples, SequenceData
from src.data.tensor_examples import TensorExamples
from src.student.settings import EvaluationSettings
from src.teacher.ilora_model import GatedTeacher, ILoRATeacher
from src.teacher.labelling.labels import Labeller, item_head_labeller
from src.teacher.objective import objective_of
from src.teacher.operations.teacher_check import TOP, Ranking, teacher_ranker
from src.teacher.settings import ExportSettings, TeacherSettings
from src.teacher.title_lm.generation import answer_all, judge_each
from src.teacher.title_lm.labelling import title_labeller
from src.teacher.title_lm.model import TitleTeacher
from src.teacher.title_lm.scoring import title_catalogue


class TrainedTeacher(Protocol):
    """A teacher and its way of ranking the catalogue."""

    @property
    def model(self) -> GatedTeacher:
        """The teacher itself."""

    def labeller(self) -> Labeller:
        """What turns training examples into labels."""

    def ranking(self, examples: Examples, evaluation: EvaluationSettings) -> Ranking:
        """How it ranks the targets of held-out examples; of one that writes, also which answers were right."""


@dataclass(frozen=True, eq=False)
class HeadTeacher:
    """A teacher with an item head."""

    model: ILoRATeacher
    export: ExportSettings

    def labeller(self) -> Labeller:
        """See `TrainedTeacher`."""
        return item_head_labeller(self.model, self.export)

    def ranking(self, examples: Examples, evaluation: EvaluationSettings) -> Ranking:
        """See `TrainedTeacher`."""
        return teacher_ranker(self.model, self.export.batch_size, evaluation.mask_history)(examples)


@dataclass(frozen=True, eq=False)
class WritingTeacher:
    """A teacher that writes titles.

    Its answers are judged over the lists that travel with it, and over lists drawn with ``seed`` where an example has
    none.
    """

    model: TitleTeacher
    settings: TeacherSettings
    seed: int

    def labeller(self) -> Labeller:
        """See `TrainedTeacher`."""
        return title_labeller(self.model, self.settings)

    def candidates(self, examples: Examples) -> CandidateLists:
        """The stored lists of examples that were seen in training or its evaluation; those of others are drawn."""
        items = np.empty((len(examples), self.model.settings.title.candidates), dtype=np.int64)
        left = np.ones(len(examples), dtype=bool)
        for stored in self.model.candidates.values():
            held = np.isin(examples.example_id, stored.example_id)
            items[held], left[held] = stored.of(examples.take(np.flatnonzero(held))), False
        rest = examples.take(np.flatnonzero(left))
        items[left] = draw_candidate_lists(rest, self.model.num_items, items.shape[1], self.seed).items
        return CandidateLists(examples.example_id, items)

    def ranking(self, examples: Examples, evaluation: EvaluationSettings) -> Ranking:
        """Ranks from the catalogue ranking that labels come from, answers by free generation.

        Constrained beams list as many items as the largest cut-off needs; a target that they did not list ranks last.
        """
        # items of the history may have to leave the list
        lost = examples.history.shape[1] if evaluation.mask_history else 0
        listed = max(TOP, *evaluation.ks) + lost
        export = self.settings.export
        catalogue = title_catalogue(self.model, export, self.settings.ranking, listed)
        ranking = teacher_ranker(catalogue, export.batch_size, evaluation.mask_history)(examples)
        lists = self.candidates(examples)
        columns, shown = TensorExamples.of(examples, catalogue.device), torch.from_numpy(lists.items)
        answers = answer_all(self.model, columns, shown.to(catalogue.device), export.batch_size, "teacher: answering")
        judged = judge_each(answers, columns.target, shown, self.model.prompts.texts)
        valid, correct = torch.tensor(judged).unbind(dim=1)
        return replace(ranking, valid=valid, correct=correct, candidates=lists)


def load_trained(
    folder: Path, settings: TeacherSettings, data: SequenceData, device: torch.device, seed: int
) -> TrainedTeacher:
    """A saved teacher of the objective that the settings name, which ranks and labels as they say.

    ``seed`` is that of the run that trained it. Raises what `load_teacher` raises.
    """
    objective = objective_of(settings.objective)
    return objective.trained(objective.load(folder, settings, data, device), settings, seed)
