"""The stages from interactions to teacher outputs, each cached by what determines it.

data ─► student baseline ─► encoder ─► language model ─► teacher ─► teacher outputs
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as document
from torch import Tensor

from src.core.checkpoints import FileCheckpoint
from src.core.data_utils import fingerprint, fingerprint_file
from src.core.documents import PARTIAL, conform
from src.core.errors import ConfigError
from src.core.hardware import resolve_device
from src.core.logging import epoch_bar, get_logger
from src.core.memory import give_back
from src.core.paths import MANIFEST, require_finished, write_json
from src.core.settings import deciding
from src.core.training import FitResult, Report, silent
from src.data.dataset import load_dataset
from src.data.examples import Examples, SequenceData, sample
from src.data.item_text import TextSource
from src.data.teacher_outputs import TeacherOutputs, load_teacher_outputs, save_teacher_outputs
from src.distill.data_bridge import RANKING_FILE, import_dllm2rec
from src.distill.teachers import LLM, SELF, TITLES, combined, outputs_from_scores, without_labels
from src.evaluation.paired import user_interval
from src.pipeline.cache import StageCache, StageRecord, stage_key
from src.pipeline.settings import ExperimentSettings
from src.student.architectures.sasrec import SASRec
from src.student.artefact import WEIGHTS, load_student, save_student
from src.student.base import Recommender, SequenceStudent
from src.student.baselines import tune_baseline
from src.student.closed_form_cost import Cost, prior_cost
from src.student.datamodule import StudentData
from src.student.evaluator import ScoreRows
from src.student.models import require_network, student_settings
from src.student.objectives import train_prior_scores
from src.student.prior import Prior, fit_prior, load_prior, require_prior_fits, save_prior
from src.student.settings import ClosedFormSettings, NetworkSettings, StudentSettings
from src.student.trainer_baseline import train_student
from src.teacher.check import Ranking, TeacherCheck, check_teacher, student_ranker
from src.teacher.label_cache import LabelCache, asked_of_a_row, export_that_is_read
from src.teacher.selection import StudentAnswers, ask_student, build_selector, choose_rows
from src.teacher.settings import training_settings

if TYPE_CHECKING:  # src.teacher's models import transformers and peft: only a run that has a teacher waits for them
    from src.teacher.trained import TrainedTeacher

_log = get_logger(__name__)

#: how far the seeds of the teachers in `self` lie from the run's own: no final training has one of them
SELF_SEEDS = 1000

#: raise a stage's number when its code changes what it produces: older cache entries are then built again
VERSIONS = {
    "student": 2,
    "closed_form": 1,
    "prior": 1,
    "student_outputs": 1,
    "tiny_llm": 1,
    "teacher": 1,
    "teacher_outputs": 1,
    "title_outputs": 1,
}
_AGAIN = "remove it and run again"
_WORTH_TELLING = 60.0  # seconds


@document(frozen=True, config=PARTIAL)
class _Fitted:
    """What is read of a student's manifest."""

    fit: FitResult


@document(frozen=True, config=PARTIAL)
class _Tuned:
    """What is read of the manifest of a model in closed form."""

    tried: Annotated[list[dict[str, Any]], Field(min_length=1)]


@document(frozen=True, config=PARTIAL)
class _Trained:
    """What is read of a teacher's manifest."""

    summary: dict[str, Any]


@dataclass
class Stages:
    """The stages of one experiment; each property builds or reuses what it needs, once."""

    settings: ExperimentSettings
    cache: StageCache
    _rankings: dict[str, Ranking] = field(default_factory=dict, repr=False)
    #: what `closed_form` and `prior_record` found: a stage that this run built is not one that it reused
    _found: dict[tuple[str, str], StageRecord] = field(default_factory=dict, repr=False)

    @cached_property
    def device(self) -> torch.device:
        """Where models are trained."""
        return resolve_device(self.settings.runtime.device)

    @cached_property
    def data(self) -> SequenceData:
        """The dataset, split."""
        return load_dataset(self.settings.dataset)

    @cached_property
    def student_data(self) -> StudentData:
        """The training and validation splits as tensors, and the student's prior."""
        return StudentData.of(self.data, self.device, self.prior, self.item_text)

    @property
    def reads_text(self) -> bool:
        """Whether the student, or its prior, is computed from the items' texts."""
        return self.settings.student.reads_text or _reads_text(self.prior_name)

    @cached_property
    def item_text(self) -> Tensor | None:
        """The language model's embeddings of the items' texts ``[V, W]``, where the student reads them."""
        return self._text_embeddings if self.reads_text else None

    @cached_property
    def _text_embeddings(self) -> Tensor:
        return torch.from_numpy(np.array(self.title_outputs.item_embedding))

    @cached_property
    def text_source(self) -> TextSource | None:
        """Where embeddings of items' texts come from; None where this run makes none."""
        teachers = self.settings.distill.teachers
        if not (self.reads_text or self.uses_own_teacher or TITLES in teachers):
            return None
        from src.teacher.llm import fingerprint_llm

        teacher = self.settings.teacher
        if teacher.quantise != "none":  # its embeddings are those of the machine that it was quantised on
            return None
        return TextSource(
            self.llm_folder,
            fingerprint_llm(self.llm_folder),
            teacher.prompt.title_tokens,
            teacher.dtype,
            self.settings.dataset.item_text,
        )

    @cached_property
    def _bare_data(self) -> StudentData:
        """The same without a prior."""
        return StudentData.of(self.data, self.device)

    def closed_form(self, name: str) -> StageRecord:
        """A model without gradient descent at the best of a few settings.

        Raises ``ConfigError`` when there is no such model, or the catalogue is too large for it.
        """
        if ("closed_form", name) in self._found:
            return self._found["closed_form", name]
        settings = self.settings
        determined_by = {
            "version": VERSIONS["closed_form"],
            "data": self.data.fingerprints(),
            "model": name,
            "trials": settings.baselines.trials,
            "evaluation": {**asdict(settings.evaluation), "batch_size": None},
            "device": self.device.type,
        }
        if reads_text := _reads_text(name):
            determined_by["text"] = fingerprint(self._text_embeddings)

        def build(folder: Path) -> None:
            data = replace(self._bare_data, item_text=self._text_embeddings) if reads_text else self._bare_data
            found = tune_baseline(name, settings.baselines.trials, settings.evaluation, data)
            extra = {"fit": asdict(found.fit), "tried": found.tried}
            fingerprints = self.data.fingerprints()
            source = self.text_source if reads_text else None
            save_student(folder, found.model, found.settings, self.data.id_map, fingerprints, extra, source)

        record = self.cache.stage(f"closed form: {name}", determined_by, build, kind="closed_form")
        return self._found.setdefault(("closed_form", name), record)

    @cached_property
    def prior_name(self) -> str:
        """The model whose scores the student adds to its own: "none" where there is none, or the catalogue is too large
        for the one that ``auto`` would take. Raises ``ConfigError`` when one that is named does not fit."""
        student = self.settings.student
        if not isinstance(student, NetworkSettings) or student.prior == "none":
            return "none"
        name = "linear" if student.prior == "auto" else student.prior
        rows, met = len(self.data.train), int((self.data.item_counts > 0).sum())
        try:
            settings = student_settings(name)
            require_prior_fits(rows, settings, self.data.num_items)
            if isinstance(settings, ClosedFormSettings) and settings.max_items >= self.data.num_items:
                cost = prior_cost(self.data.num_items, met, rows, settings.window, student.prior_folds)
                _require_worth(student, cost)
        except ConfigError as error:
            if student.prior != "auto":
                raise
            _log.warning("no prior: %s", error)
            return "none"
        return name

    def prior_record(self, name: str) -> StageRecord:
        """A model in closed form, fitted out of fold and on all training rows, as `closed_form` chose its settings."""
        if ("prior", name) in self._found:
            return self._found["prior", name]
        student, settings = require_network(self.settings.student), self.settings
        chosen = self.closed_form(name)
        determined_by = {
            "version": VERSIONS["prior"],
            "closed_form": chosen.key,
            "folds": student.prior_folds,
            "seed": settings.seed,
        }

        def build(folder: Path) -> None:
            data = self._bare_data
            kind = load_student(chosen.folder, self.data)[1]
            text = self._text_embeddings if kind.reads_text else None
            prior = fit_prior(
                kind, data.train, data.validation, data.num_items, student.prior_folds, settings.seed, text
            )
            save_prior(folder, prior)

        return self._found.setdefault(("prior", name), self.cache.stage("prior", determined_by, build))

    @cached_property
    def prior(self) -> Prior | None:
        """What `prior_record` holds, on the run's device; None for a student without a prior."""
        return None if self.prior_name == "none" else load_prior(self.prior_record(self.prior_name).folder, self.device)

    @cached_property
    def baseline(self) -> StageRecord:
        """The student trained alone, with the run's seed."""
        return self._student("student_baseline", self.settings.student, self.settings.seed)

    @cached_property
    def encoder(self) -> StageRecord:
        """The teacher's own frozen SASRec; the same artefact as the baseline where the settings agree."""
        return self._student("encoder", self.settings.teacher.encoder, self.settings.seed)

    @cached_property
    def encoder_content(self) -> str:
        """What the teacher depends on: an encoder trained again for other cut-offs K is the same to it."""
        return fingerprint_file(self.encoder.folder / WEIGHTS)

    def load_student(self, record: StageRecord) -> Recommender:
        """A student on the run's device."""
        return load_student(record.folder, self.data)[0].to(self.device)

    def _student(self, name: str, settings: StudentSettings, seed: int) -> StageRecord:
        with_prior = isinstance(settings, NetworkSettings) and settings.prior != "none" and self.prior_name != "none"
        determined_by = {
            "version": VERSIONS["student"],
            "data": self.data.fingerprints(),
            "settings": deciding(settings),
            "prior": self.prior_record(self.prior_name).key if with_prior else None,
            "evaluation": {**asdict(self.settings.evaluation), "batch_size": None},
            "seed": seed,
            "device": self.device.type,
        }
        if settings.reads_text:
            determined_by["text"] = fingerprint(self._text_embeddings)

        def build(folder: Path) -> None:
            evaluation = self.settings.evaluation
            data = self.student_data if with_prior or settings.reads_text else self._bare_data
            with student_bar(name, settings) as report:
                run = train_student(settings, evaluation, data, seed, report)
            extra = {"fit": asdict(run.fit)}
            source = self.text_source if run.student.from_text else None
            save_student(folder, run.student, settings, self.data.id_map, self.data.fingerprints(), extra, source)

        return self.cache.stage(name, determined_by, build, kind="student")

    @cached_property
    def llm_folder(self) -> str:
        """A local folder or hub id of the language model; `tiny` is built and pretrained first."""
        from src.teacher.tiny_llm import build_tiny_llm

        teacher = self.settings.teacher
        if teacher.llm != "tiny":
            return teacher.llm
        determined_by = {
            "version": VERSIONS["tiny_llm"],
            "train": self.data.train.fingerprint,
            "id_map": self.data.id_map.fingerprint,
            "settings": deciding(teacher.tiny),
            "seed": self.settings.seed,
        }

        def build(folder: Path) -> None:
            pretraining = build_tiny_llm(folder, teacher.tiny, self.data, self.settings.seed, self.device)
            write_json(folder / MANIFEST, {"kind": "tiny_llm", "fit": asdict(pretraining)})

        return str(self.cache.stage("tiny_llm", determined_by, build).folder)

    @cached_property
    def teacher(self) -> StageRecord:
        """iLoRA, trained."""
        from src.teacher.factory import save_teacher
        from src.teacher.llm import fingerprint_llm
        from src.teacher.training import train_teacher

        settings = self.settings.teacher
        determined_by = {
            "version": VERSIONS["teacher"],
            "data": self.data.fingerprints(),
            "encoder": self.encoder_content,
            "llm": fingerprint_llm(self.llm_folder),
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
        from src.teacher.trained import load_trained

        settings = self.settings
        return load_trained(self.teacher.folder, settings.teacher, self.data, self.device, settings.seed)

    def teacher_ranking(self, examples: Examples) -> Ranking:
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
        return conform(require_finished(folder), _Trained, folder / MANIFEST, _AGAIN).summary

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
            rows = choose_rows(self.data.train, settings.export, self.settings.seed, self._student_answers)
            # labels are dear: what an interrupted run or a smaller budget has paid for is not asked again
            root = self.cache.root / "labels" if self.cache.reuse else folder / "labels"
            determined = {name: determined_by[name] for name in ("version", "teacher")}
            cache = LabelCache.at(root, {**determined, **asked_of_a_row(settings)})
            outputs = cache.outputs(self.data, rows, settings.export, lambda: self.trained_teacher.labeller())
            shutil.rmtree(folder / "labels", ignore_errors=True)
            save_teacher_outputs(folder, outputs, self.data.id_map)

        return self.cache.stage("teacher_outputs", determined_by, build)

    def _student_answers(self) -> StudentAnswers:
        """What the teacher's own encoder says about the training rows: the same whichever student is distilled."""
        return ask_student(self.load_encoder(), self.data.train, self.settings.evaluation.batch_size)

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
        from src.teacher.memory_probe import probe_memory as probe  # transformers: only where a teacher was trained

        memory = probe(self.trained_teacher.model, self.data.id_map, asked, settings.seed, interval)
        return replace(found, memory=memory)

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

    @cached_property
    def title_outputs(self) -> TeacherOutputs:
        """The language model's embedding of every item, and no label: nothing is trained for it."""
        from src.teacher.llm import fingerprint_llm

        settings = self.settings.teacher
        determined_by = {
            "version": VERSIONS["title_outputs"],
            "id_map": self.data.id_map.fingerprint,
            "data": self.data.fingerprints(),
            "llm": fingerprint_llm(self.llm_folder),
            "title_tokens": settings.prompt.title_tokens,
            "dtype": settings.dtype,
            "quantise": str(settings.quantise),
        }

        def build(folder: Path) -> None:
            from src.teacher.title_embeddings import embed_titles

            embedding = embed_titles(settings, self.llm_folder, self.data.id_map, self.device).cpu().numpy()
            manifest = {"fingerprints": {**self.data.fingerprints(), "model": determined_by["llm"], "prompt": "none"}}
            outputs = without_labels(embedding, settings.export.top_n, manifest)
            save_teacher_outputs(folder, outputs, self.data.id_map)

        record = self.cache.stage("embeddings of titles", determined_by, build, kind="title_outputs")
        return load_teacher_outputs(record.folder, self.data.fingerprints(), self.data.num_items)

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

    @property
    def reads_given_outputs(self) -> bool:
        """Whether the language model's outputs come from a folder."""
        return self.settings.distill.outputs_from is not None and LLM in self.settings.distill.teachers

    @property
    def uses_own_teacher(self) -> bool:
        """Whether this experiment trains a language model, or reads outputs that were given, or needs none."""
        return self.settings.distill.outputs_from is None and LLM in self.settings.distill.teachers


def _reads_text(name: str) -> bool:
    """Whether a model in closed form, by its name, is computed from the items' texts."""
    return name != "none" and student_settings(name).reads_text


def _require_worth(student: NetworkSettings, cost: Cost) -> None:
    """Tell what a prior costs; raises ``ConfigError`` where ``auto`` would take one that costs more than it may."""
    over_time, over_memory = cost.seconds > 60 * student.prior_minutes, cost.memory > 2**30 * student.prior_gb
    if student.prior == "auto" and (over_time or over_memory):
        name = "prior_minutes" if over_time else "prior_gb"
        rule = f"the prior would need {cost}"
        raise ConfigError.one(f"student.{name}", getattr(student, name), rule, "raise it, or use student.prior=linear")
    if cost.seconds > _WORTH_TELLING:
        _log.info("the prior needs %s, once for these data", cost)


def student_bar(name: str, settings: StudentSettings) -> AbstractContextManager[Report]:
    """A bar over the epochs of a student's training; none for a model in closed form."""
    if not isinstance(settings, NetworkSettings):
        return nullcontext(silent)
    return epoch_bar(name, settings.loop.epochs, settings.loop.monitor)


def fit_of(record: StageRecord) -> FitResult:
    """How a student stage's training went."""
    return conform(require_finished(record.folder), _Fitted, record.folder / MANIFEST, _AGAIN).fit


def tried_for(record: StageRecord) -> int:
    """How many settings were tried for a model in closed form."""
    return len(conform(require_finished(record.folder), _Tuned, record.folder / MANIFEST, _AGAIN).tried)
