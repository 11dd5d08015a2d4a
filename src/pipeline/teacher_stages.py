"""The stages of the teacher: its training, what it ranks, and whether distilling from it may help.

encoder, language model ─► teacher
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic.dataclasses import dataclass as document

from src.core.checkpoints import FileCheckpoint
from src.core.documents import PARTIAL, conform
from src.core.memory import give_back
from src.core.paths import MANIFEST, require_finished
from src.data.examples import Examples, sample
from src.evaluation.paired import user_interval
from src.pipeline.cache import StageRecord, stage_key
from src.pipeline.student_stages import AGAIN, StudentStages
from src.pipeline.versions import VERSIONS
from src.student.architectures.sasrec import SASRec
from src.teacher.operations.teacher_check import RankedExamples, TeacherCheck, check_teacher, student_ranker
from src.teacher.settings import training_settings

if TYPE_CHECKING:  # src.teacher's models import transformers and peft: only a run that has a teacher waits for them
    from src.teacher.operations.inference import TrainedTeacher


@document(frozen=True, config=PARTIAL)
class _Trained:
    """What is read of a teacher's manifest."""

    summary: dict[str, Any]


@dataclass
class TeacherStages(StudentStages):
    """The stages of students and teacher; each property builds or reuses what it needs, once."""

    _rankings: dict[str, RankedExamples] = field(default_factory=dict, repr=False)

    @cached_property
    def teacher(self) -> StageRecord:
        """The trained teacher's stage."""
        from src.teacher.factory import save_teacher
        from src.teacher.training import train_teacher

        settings = self.settings.teacher
        determined_by = {
            "version": VERSIONS["teacher"],
            "data": self.data.fingerprints(),
            "encoder": self.encoder_content,
            "llm": self.llm_fingerprint,
            "settings": training_settings(settings),
            "mask_history": self.settings.evaluation.mask_history,
            "seed": self.settings.seed,
        }
        key = stage_key("teacher", determined_by)
        # an epoch of a large language model is hours: a killed run goes on where it was
        checkpoint = FileCheckpoint(self.cache.root / "checkpoints" / f"teacher_{key}.pt", key)

        def build(folder: Path) -> None:
            if not self.cache.reuse:
                checkpoint.path.unlink(missing_ok=True)
            run = train_teacher(
                settings,
                self.data,
                self.load_encoder(),
                self.llm_folder,
                self.device,
                self.settings.seed,
                self.settings.evaluation,
                checkpoint=checkpoint,
            )
            save_teacher(folder, run.teacher, self.data, run.summary())

        record = self.cache.stage("teacher", determined_by, build)
        checkpoint.path.unlink(missing_ok=True)
        return record

    def load_encoder(self) -> SASRec:
        """The teacher's frozen SASRec on the run's device."""
        encoder = self.load_student(self.encoder)
        assert isinstance(encoder, SASRec)
        return encoder

    @cached_property
    def trained_teacher(self) -> TrainedTeacher:
        """The trained teacher on the run's device."""
        from src.teacher.operations.inference import load_trained

        settings = self.settings
        return load_trained(self.teacher.folder, settings.teacher, self.data, self.device, settings.seed)

    def teacher_ranking(self, examples: Examples) -> RankedExamples:
        """How the trained teacher ranks held-out examples. The check and the comparison ask for the same ones: a
        ranking is computed once, and outlives `release_teacher`.
        """
        if examples.fingerprint not in self._rankings:
            ranking = self.trained_teacher.ranking(examples, self.settings.evaluation)
            self._rankings[examples.fingerprint] = ranking
        return self._rankings[examples.fingerprint]

    def release_teacher(self) -> None:
        """Give the memory of a loaded teacher back: a search's trials share the device with nothing else."""
        self.__dict__.pop("trained_teacher", None)
        give_back(self.device)

    @cached_property
    def teacher_summary(self) -> dict[str, Any]:
        """Rows trained, epochs, gate entropy, validation metrics on the sample, as the teacher's manifest tells."""
        folder = self.teacher.folder
        return conform(require_finished(folder), _Trained, folder / MANIFEST, AGAIN).summary

    def check_teacher(self) -> TeacherCheck:
        """The teacher beside the student on the validation sample: is distilling from it likely to help?"""
        settings, evaluation = self.settings, self.settings.evaluation
        count, interval = settings.teacher.validation_rows, partial(user_interval, seed=settings.seed)
        found = check_teacher(
            self.teacher_ranking,
            student_ranker(self.load_student(self.baseline), evaluation.batch_size, evaluation.mask_history),
            sample(self.data.validation, count, settings.seed, "validation"),
            self.data.num_items,
            interval,
        )
        asked = settings.teacher.memory_probe
        if not asked:
            return found
        from src.teacher.operations.memory_probe import (
            probe_memory as probe,  # transformers: only where a teacher was trained
        )

        memory = probe(self.trained_teacher.model, self.data.id_map, asked, settings.seed, interval)
        return replace(found, memory=memory)
