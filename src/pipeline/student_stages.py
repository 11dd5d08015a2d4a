"""The stages of students: models in closed form, priors, the baseline, the teacher's encoder.

data ─► closed forms ─► prior ─► student baseline, encoder
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as document
from torch import Tensor

from src.core.data_utils import fingerprint, fingerprint_file
from src.core.documents import PARTIAL, conform
from src.core.errors import ConfigError
from src.core.logging import epoch_bar, get_logger
from src.core.paths import MANIFEST, require_finished
from src.core.settings import deciding
from src.core.training import FitResult, Report, silent
from src.data.item_text import TextSource
from src.distill.settings import active_terms, priors_beside
from src.distill.teachers import TITLES
from src.pipeline.cache import StageRecord
from src.pipeline.settings import training_seed
from src.pipeline.source_stages import SourceStages
from src.pipeline.versions import VERSIONS
from src.student.artefact import WEIGHTS, load_student, save_student
from src.student.base import Recommender
from src.student.baselines import tune_baseline
from src.student.closed_form_cost import FitCost, prior_cost
from src.student.datamodule import StudentData
from src.student.models import closed_forms, require_network, student_settings
from src.student.prior import Prior, fit_prior, load_prior, require_prior_fits, save_prior
from src.student.settings import ClosedFormSettings, NetworkSettings, StudentSettings
from src.student.trainer_baseline import train_student

_log = get_logger(__name__)

#: what to do about a damaged stage
AGAIN = "remove it and run again"
_WORTH_TELLING = 60.0  # seconds


@document(frozen=True, config=PARTIAL)
class _Fitted:
    """What is read of a student's manifest."""

    fit: FitResult


@document(frozen=True, config=PARTIAL)
class _Tuned:
    """What is read of the manifest of a model in closed form."""

    tried: Annotated[list[dict[str, Any]], Field(min_length=1)]


@dataclass
class StudentStages(SourceStages):
    """Stages without a teacher; each property builds or reuses what it needs, once."""

    #: priors that a trial's student may have in place of the configured one, beside those of the settings' own terms
    trial_priors: tuple[str, ...] = ()
    #: what `closed_form` and `prior_record` found: a stage that this run built is not one that it reused
    _found: dict[tuple[str, str], StageRecord] = field(default_factory=dict, repr=False)

    @cached_property
    def student_data(self) -> StudentData:
        """The training and validation splits as tensors, and the student's prior."""
        return StudentData.of(self.data, self.device, self.prior, self.item_text)

    @cached_property
    def taught_data(self) -> StudentData:
        """`student_data`, and the priors that a student has instead where it is taught."""
        return replace(self.student_data, other_priors=self.other_priors)

    @property
    def other_priors(self) -> Mapping[str, Callable[[], Prior]]:
        """What reads `prior_record` of each of `other_prior_names`, onto the run's device."""
        folders = {name: self.prior_record(name).folder for name in self.other_prior_names}
        return {name: partial(load_prior, folder, self.device) for name, folder in folders.items()}

    def require_other_priors(self) -> None:
        """Raises ``ConfigError`` where the student has no prior in whose place another may stand, or where one of the
        others does not fit this catalogue."""
        for name in self.other_prior_names:
            if self.prior_name == "none":
                why = "the student has no prior here in whose place it could stand"
            else:
                try:
                    self._require_prior(name)
                    continue
                except ConfigError as error:
                    why = error.problems[0].rule
            raise ConfigError.one("distill.text_prior", name, why, "leave it out")

    def _require_prior(self, name: str) -> None:
        """Raises ``ConfigError`` where a prior does not fit, or costs more than ``auto`` may spend."""
        student, settings = require_network(self.settings.student), student_settings(name)
        rows, met = len(self.data.train), int((self.data.item_counts > 0).sum())
        require_prior_fits(rows, settings, self.data.num_items)
        if isinstance(settings, ClosedFormSettings) and settings.max_items >= self.data.num_items:
            _require_worth(student, prior_cost(self.data.num_items, met, rows, settings.window, student.prior_folds))

    @property
    def other_prior_names(self) -> tuple[str, ...]:
        """The priors that terms of the distillation put in place of the student's own, here or in a trial."""
        student = self.settings.student
        if not isinstance(student, NetworkSettings):
            return ()
        own = priors_beside(student, active_terms(self.settings.distill))
        return tuple(dict.fromkeys((*own, *self.trial_priors)))

    @property
    def closed_form_names(self) -> tuple[str, ...]:
        """The models without gradient descent that a table shows, with those that a taught student leans on."""
        return tuple(dict.fromkeys((*self.settings.baselines.models, *self.other_prior_names)))

    @property
    def reads_text(self) -> bool:
        """Whether the student, or a prior of it, is computed from the items' texts."""
        priors = (self.prior_name, *self.other_prior_names)
        return self.settings.student.reads_text or any(map(_reads_text, priors))

    @property
    def reads_embeddings(self) -> bool:
        """Whether anything here, a model of the table or a teacher among them, is computed from the language model's
        embeddings of the items' texts."""
        teachers = self.settings.distill.teachers
        models = [name for name in closed_forms() if name in (*self.closed_form_names, *teachers)]
        return self.reads_text or TITLES in teachers or any(map(_reads_text, models))

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
        teacher = self.settings.teacher
        if teacher.quantise != "none":  # its embeddings are those of the machine that it was quantised on
            return None
        return TextSource(
            self.llm_folder,
            self.llm_fingerprint,
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
        try:
            self._require_prior(name)
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
        """The student trained alone."""
        return self._student("student_baseline", self.settings.student, training_seed(self.settings))

    @cached_property
    def encoder(self) -> StageRecord:
        """The teacher's own frozen SASRec; the same artefact as the baseline where the settings agree."""
        return self._student("encoder", self.settings.teacher.encoder, self.settings.seed)

    @cached_property
    def encoder_content(self) -> str:
        """What the teacher depends on: an encoder trained again for other cut-offs K is the same to it."""
        return fingerprint_file(self.encoder.folder / WEIGHTS)

    def load_student(self, record: StageRecord) -> Recommender:
        """A stage's student on the run's device."""
        return self.read_student(record.folder)

    def read_student(self, folder: Path) -> Recommender:
        """A saved student of these data on the run's device; raises ``ArtefactError`` as `load_student` does."""
        return load_student(folder, self.data)[0].to(self.device)

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


def _reads_text(name: str) -> bool:
    """Whether a model in closed form, by its name, is computed from the items' texts."""
    return name != "none" and student_settings(name).reads_text


def _require_worth(student: NetworkSettings, cost: FitCost) -> None:
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
    return conform(require_finished(record.folder), _Fitted, record.folder / MANIFEST, AGAIN).fit


def tried_for(record: StageRecord) -> int:
    """How many settings were tried for a model in closed form."""
    return len(conform(require_finished(record.folder), _Tuned, record.folder / MANIFEST, AGAIN).tried)
