"""What everything starts from: data, the language model, and its embeddings of the items' titles.

data ─► language model ─► embeddings of titles
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch

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
    def _llm_place(self) -> Path | None:
        """The folder of a language model that was given; None for a hub id and for `tiny`."""
        from src.teacher.backbone.transformers_calls import is_local
        from src.teacher.settings import TINY

        llm = self.settings.teacher.llm
        return Path(llm) if llm != TINY and is_local(llm) else None

    @cached_property
    def llm_is_gone(self) -> bool:
        """Whether the folder of the language model is not there any more, as this run found it when it first looked."""
        return self._llm_place is not None and not self._llm_place.is_dir()

    @property
    def why_gone(self) -> str:
        """What a reader is told of a language model that `llm_is_gone`."""
        return f"the folder of the language model is gone (teacher.llm = {self.settings.teacher.llm!r})"

    @cached_property
    def llm_fingerprint(self) -> str:
        """What identifies the language model; of a folder that is gone, what the cache noted when it was last read.

        Raises ``ModelError`` when the model cannot be read, ``ArtefactError`` when it is gone and nothing is noted.
        """
        from src.teacher.backbone.model_fingerprint import fingerprint_llm

        if self._llm_place is None:
            return fingerprint_llm(self.llm_folder)
        cache, folder = self.cache.root, str(self._llm_place)
        if self.llm_is_gone:
            found = noted_fingerprint(cache, folder)
            _log.warning("%s is gone: its language model is known from a note in the cache (%s)", folder, found)
            return found
        found = fingerprint_llm(folder)
        note_fingerprint(cache, folder, found)
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
