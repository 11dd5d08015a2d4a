"""What everything starts from: data, the language model, and its embeddings of the items' titles.

data ─► language model ─► embeddings of titles
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch

from src.core.errors import ArtefactError, ModelError
from src.core.hardware import resolve_device
from src.core.logging import get_logger
from src.core.paths import MANIFEST, write_json
from src.core.settings import deciding
from src.data.examples import SequenceData
from src.data.teacher_outputs import TeacherOutputs, load_teacher_outputs, save_teacher_outputs
from src.distill.teachers import LLM, without_labels
from src.pipeline.cache import StageCache
from src.pipeline.known_models import note_fingerprint, noted_fingerprint
from src.pipeline.prepared_data import prepared_data
from src.pipeline.settings import ExperimentSettings
from src.pipeline.versions import VERSIONS
from src.teacher.settings import TINY

_log = get_logger(__name__)


@dataclass
class SourceStages:
    """Stages before any student or teacher; each property builds or reuses what it needs, once."""

    settings: ExperimentSettings
    cache: StageCache

    @cached_property
    def device(self) -> torch.device:
        """The device that models are trained on."""
        return resolve_device(self.settings.runtime.device)

    @cached_property
    def data(self) -> SequenceData:
        """The dataset, split."""
        return prepared_data(self.settings.dataset, self.cache)

    @cached_property
    def llm_folder(self) -> str:
        """A local folder or hub id of the language model; `tiny` is built and pretrained first."""
        from src.teacher.backbone.tiny_llm import build_tiny_llm

        teacher = self.settings.teacher
        if teacher.llm != TINY:
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
    def llm_is_gone(self) -> bool:
        """Whether the language model is not there any more, as this run found it when it first looked: its folder is
        gone (where a disk is not mounted, an empty one may be in its place), or a hub id that was read before cannot be
        reached."""
        from src.teacher.backbone.transformers_calls import is_local

        llm = self.settings.teacher.llm
        if llm == TINY:
            return False
        if is_local(llm):
            try:
                return not any(Path(llm).iterdir())
            except (FileNotFoundError, NotADirectoryError):
                return True
            except OSError:  # it is there, and whoever reads it is told what is wrong
                return False
        return self._was_known and not self._can_be_reached

    @property
    def _llm_name(self) -> str:
        """What the cache knows the language model by."""
        from src.teacher.backbone.transformers_calls import is_local

        llm = self.settings.teacher.llm
        return str(Path(llm)) if is_local(llm) else llm

    @property
    def _was_known(self) -> bool:
        try:
            noted_fingerprint(self.cache.root, self._llm_name)
        except ArtefactError:
            return False
        return True

    @property
    def _can_be_reached(self) -> bool:
        from src.teacher.backbone.model_fingerprint import fingerprint_llm

        try:
            fingerprint_llm(self.settings.teacher.llm)
        except ModelError:
            return False
        return True

    @property
    def why_gone(self) -> str:
        """What a reader is told of a language model that `llm_is_gone`."""
        from src.teacher.backbone.transformers_calls import is_local

        llm = self.settings.teacher.llm
        what = "the folder of the language model is gone" if is_local(llm) else "the language model cannot be reached"
        return f"{what} (teacher.llm = {llm!r})"

    @cached_property
    def llm_fingerprint(self) -> str:
        """What identifies the language model; of one that is gone, what the cache noted when it was last read.

        Raises ``ModelError`` when the model cannot be read, ``ArtefactError`` when it is gone and nothing is noted.
        """
        from src.teacher.backbone.model_fingerprint import fingerprint_llm

        llm = self._llm_name
        if llm == TINY:
            return fingerprint_llm(self.llm_folder)
        if self.llm_is_gone:
            found = noted_fingerprint(self.cache.root, llm)
            _log.warning("%s: it is known from a note in the cache (%s)", self.why_gone, found)
            return found
        found = fingerprint_llm(llm)
        note_fingerprint(self.cache.root, llm, found)
        return found

    @cached_property
    def title_outputs(self) -> TeacherOutputs:
        """The language model's embedding of every item, and no label: nothing is trained for it."""
        settings = self.settings.teacher
        determined_by = {
            "version": VERSIONS["title_outputs"],
            "id_map": self.data.id_map.fingerprint,
            "data": self.data.fingerprints(),
            "llm": self.llm_fingerprint,
            "title_tokens": settings.prompt.title_tokens,
            "dtype": settings.dtype,
            "quantise": str(settings.quantise),
        }

        def build(folder: Path) -> None:
            from src.teacher.labelling.title_embeddings import embed_titles

            embedding = embed_titles(settings, self.llm_folder, self.data.id_map, self.device).cpu().numpy()
            manifest = {"fingerprints": {**self.data.fingerprints(), "model": determined_by["llm"], "prompt": "none"}}
            outputs = without_labels(embedding, settings.export.top_n, manifest)
            save_teacher_outputs(folder, outputs, self.data.id_map)

        record = self.cache.stage("embeddings of titles", determined_by, build, kind="title_outputs")
        return load_teacher_outputs(record.folder, self.data.fingerprints(), self.data.num_items)

    @property
    def reads_given_outputs(self) -> bool:
        """Whether the language model's outputs come from a folder."""
        return self.settings.distill.outputs_from is not None and LLM in self.settings.distill.teachers

    @property
    def uses_own_teacher(self) -> bool:
        """Whether this experiment trains a language model, or reads outputs that were given, or needs none."""
        return self.settings.distill.outputs_from is None and LLM in self.settings.distill.teachers
