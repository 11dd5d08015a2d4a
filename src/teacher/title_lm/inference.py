"""A trained teacher that writes titles, as the pipeline uses it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from src.data.candidates import CandidateLists, draw_candidate_lists
from src.data.examples import Examples
from src.data.tensor_examples import TensorExamples
from src.student.settings import EvaluationSettings
from src.teacher.labelling.labels import Labeller
from src.teacher.operations.teacher_check import TOP, RankedExamples, teacher_ranker
from src.teacher.settings import TeacherSettings
from src.teacher.title_lm.generation import answer_all, judge_each
from src.teacher.title_lm.model import TitleTeacher
from src.teacher.title_lm.ranking_ways import ranking_way
from src.teacher.title_lm.scoring import title_labeller


@dataclass(frozen=True, eq=False)
class TrainedTitleTeacher:
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

    def ranking(self, examples: Examples, evaluation: EvaluationSettings) -> RankedExamples:
        """Ranks from the catalogue ranking that labels come from, answers by free generation.

        Constrained beams list as many items as the largest cut-off needs; a target that they did not list ranks last.
        """
        # items of the history may have to leave the list
        lost = examples.history.shape[1] if evaluation.mask_history else 0
        listed = max(TOP, *evaluation.ks) + lost
        export = self.settings.export
        scorer = ranking_way(self.settings.ranking).scorer(self.model, export, listed)
        ranking = teacher_ranker(scorer, export.batch_size, evaluation.mask_history)(examples)
        lists = self.candidates(examples)
        columns, shown = TensorExamples.of(examples, scorer.device), torch.from_numpy(lists.items)
        answers = answer_all(self.model, columns, shown.to(scorer.device), export.batch_size, "teacher: answering")
        judged = judge_each(answers, columns.target, shown, self.model.prompts.texts)
        valid, correct = torch.tensor(judged).unbind(dim=1)
        return replace(ranking, valid=valid, correct=correct, candidates=lists)
