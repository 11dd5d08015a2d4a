"""A saved student: safetensors, its settings, the id map. It needs no language model's table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as document
from torch import Tensor

from src.core.checkpoints import load_weights, save_weights
from src.core.documents import PARTIAL, conform
from src.core.errors import ArtefactError, ConfigError
from src.core.paths import MANIFEST, atomic_folder, require_finished, write_json
from src.data.examples import SequenceData
from src.data.id_map import IdMap
from src.student.models import SequenceStudent, build_student
from src.student.settings import StudentSettings

WEIGHTS = "model.safetensors"
ID_MAP = "id_map.json"
_AGAIN = "train the student again"


@document(frozen=True, config=PARTIAL)
class _Manifest:
    """What is read of the manifest."""

    settings: StudentSettings
    num_items: Annotated[int, Field(ge=1)]
    history_length: Annotated[int, Field(ge=1)]


def save_student(
    folder: Path,
    student: SequenceStudent,
    settings: StudentSettings,
    id_map: IdMap,
    fingerprints: Mapping[str, str],
    extra: Mapping[str, Any],
) -> None:
    """Write weights, id map and manifest (``extra`` is added to it) atomically.

    ``fingerprints`` are those of the data that the student was trained on (`SequenceData.fingerprints`).
    """
    with atomic_folder(folder) as target:
        save_weights(target / WEIGHTS, student.state_dict())
        id_map.save(target / ID_MAP)
        manifest = {
            "kind": "student",
            "settings": asdict(settings),
            "num_items": student.num_items,
            "history_length": student.history_length,
            "fingerprints": dict(fingerprints),
            **extra,
        }
        write_json(target / MANIFEST, manifest)


def load_student(folder: Path, data: SequenceData | None = None) -> tuple[SequenceStudent, StudentSettings]:
    """Read a saved student in eval mode, on the CPU.

    Raises ``ArtefactError`` when the folder is unfinished or damaged, or when its items are not those of ``data``.
    """
    manifest = conform(require_finished(folder), _Manifest, folder / MANIFEST, _AGAIN)
    saved_map = IdMap.load(folder / ID_MAP)
    if data is not None and saved_map.fingerprint != data.id_map.fingerprint:
        raise ArtefactError.one(
            "id map", saved_map.fingerprint, f"the student in {folder} knows other items than this dataset"
        )
    if manifest.num_items != saved_map.num_items:
        rule = f"the id map beside it has {saved_map.num_items} items"
        raise ArtefactError.one("num_items", manifest.num_items, f"{rule}: {folder} is damaged", _AGAIN)
    weights = load_weights(folder / WEIGHTS)
    try:
        # on no device first: numbers that do not fit the weights must not fill the memory
        with torch.device("meta"):
            student = build_student(manifest.settings, manifest.num_items, manifest.history_length)
        _require_shapes(student, weights)
        student = build_student(manifest.settings, manifest.num_items, manifest.history_length)
        student.load_state_dict(weights)
    except (RuntimeError, ConfigError) as error:
        raise ArtefactError.one("weights", str(folder), f"do not fit the saved settings ({error})", _AGAIN) from None
    return student.eval(), manifest.settings


def _require_shapes(student: SequenceStudent, weights: Mapping[str, Tensor]) -> None:
    """Raises ``RuntimeError`` unless the weights are this student's, by name and shape."""
    wanted = {name: tuple(value.shape) for name, value in student.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if wanted != found:
        other = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise RuntimeError(f"{len(other)} parameters, such as {other[0]}: {found.get(other[0])}")
