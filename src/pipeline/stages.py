"""The stages from interactions to teacher outputs, each cached by what determines it.

data, language model ─► student baseline, encoder ─► teacher ─► teacher outputs
(source_stages.py)      (student_stages.py)          (teacher_stages.py)
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from src.data.teacher_outputs import TeacherOutputs, load_teacher_outputs, save_teacher_outputs
from src.distill.data_bridge import RANKING_FILE, import_dllm2rec
from src.distill.teachers import LLM, SELF, TITLES, combined, outputs_from_scores
from src.pipeline.cache import StageRecord
from src.pipeline.teacher_stages import TeacherStages
from src.pipeline.versions import VERSIONS
from src.student.base import SequenceStudent
from src.student.evaluator import ScoreRows
from src.student.objectives import train_prior_scores
from src.student.prior import load_prior
from src.teacher.labelling.cache import LabelCache, asked_of_a_row, export_that_is_read
from src.teacher.labelling.selection import StudentPredictions, build_selector, choose_rows, predict_with_student

#: how far the seeds of the teachers in `self` lie from the run's own: no final training has one of them
SELF_SEEDS = 1000


@dataclass
class Stages(TeacherStages):
    """The stages of one experiment; each property builds or reuses what it needs, once."""

    @cached_property
    def outputs_record(self) -> StageRecord:
        """The labelled training examples."""
        settings = self.settings.teacher
        determined_by = {
            "version": VERSIONS["teacher_outputs"],
            "teacher": self.teacher.key,
            "export": export_that_is_read(settings),
            "student": self.encoder_content if build_selector(settings.export).needs_student else None,
            "seed": self.settings.seed,
        }

        def build(folder: Path) -> None:
            rows = choose_rows(self.data.train, settings.export, self.settings.seed, self._student_predictions)
            # labels are dear: what an interrupted run or a smaller budget has paid for is not asked again
            root = self.cache.root / "labels" if self.cache.reuse else folder / "labels"
            determined = {name: determined_by[name] for name in ("version", "teacher")}
            cache = LabelCache.at(root, {**determined, **asked_of_a_row(settings)})
            outputs = cache.outputs(self.data, rows, settings.export, lambda: self.trained_teacher.labeller())
            shutil.rmtree(folder / "labels", ignore_errors=True)
            save_teacher_outputs(folder, outputs, self.data.id_map)

        return self.cache.stage("teacher_outputs", determined_by, build)

    def _student_predictions(self) -> StudentPredictions:
        """What the teacher's own encoder says about the training rows: the same whichever student is distilled."""
        return predict_with_student(self.load_encoder(), self.data.train, self.settings.evaluation.batch_size)

    @cached_property
    def outputs(self) -> TeacherOutputs:
        """What the configured teachers say, as one."""
        return self.outputs_of(self.settings.distill.teachers)

    def outputs_of(self, teachers: Sequence[str]) -> TeacherOutputs:
        """What some teachers say about the training rows, as one (see `src.distill.teachers.combined`).

        Raises ``ConfigError`` for a teacher that does not exist.
        """
        own = {LLM: lambda: self.llm_outputs, TITLES: lambda: self.title_outputs}
        found = [own[name]() if name in own else self._student_outputs(name) for name in teachers]
        return combined(found, self.data.num_items)

    def _student_outputs(self, name: str) -> TeacherOutputs:
        """The labels of two seeds of the student itself, or of a model in closed form."""
        settings = self.settings
        if name == SELF:
            seeds = (settings.seed + SELF_SEEDS, settings.seed + SELF_SEEDS + 1)
            sources = [self._student(f"student of seed {seed}", settings.student, seed) for seed in seeds]
        else:
            sources = [self.prior_record(name)]
        determined_by = {
            "version": VERSIONS["student_outputs"],
            "sources": [source.key for source in sources],
            "top_n": settings.teacher.export.top_n,
        }

        def build(folder: Path) -> None:
            example_id, top_n = self.data.train.example_id, settings.teacher.export.top_n
            manifest = {"fingerprints": {**self.data.fingerprints(), "model": name, "prompt": "none"}}
            found = [
                outputs_from_scores(score, example_id, self.data.num_items, top_n, manifest)
                for score in (self._training_scores(name, source) for source in sources)
            ]
            save_teacher_outputs(folder, combined(found, self.data.num_items), self.data.id_map)

        record = self.cache.stage(f"labels of {name}", determined_by, build, kind="student_outputs")
        return load_teacher_outputs(record.folder, self.data.fingerprints(), self.data.num_items)

    def _training_scores(self, name: str, source: StageRecord) -> ScoreRows:
        """A student's or a prior's scores of training rows, what the prior says out of fold."""
        if name != SELF:
            prior = load_prior(source.folder, "cpu")
            return lambda rows: prior.of(prior.train, rows)
        student, data = self.load_student(source), self.student_data
        assert isinstance(student, SequenceStudent)

        def score(rows: Tensor) -> Tensor:
            rows = rows.to(self.device)
            own = student.encode(*data.train.read(rows, student.window))
            return student.logits(own, train_prior_scores(student, data, rows))

        return score

    @cached_property
    def llm_outputs(self) -> TeacherOutputs:
        """The language model's outputs: this run's, or those that ``distill.outputs_from`` names."""
        given = self.settings.distill.outputs_from
        if given is None:
            return load_teacher_outputs(self.outputs_record.folder, self.data.fingerprints(), self.data.num_items)
        if (given / RANKING_FILE).exists():
            return import_dllm2rec(given, self.data)
        return load_teacher_outputs(given, self.data.fingerprints(), self.data.num_items)
