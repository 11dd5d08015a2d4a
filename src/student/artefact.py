"""A saved student: safetensors, its settings, the id map. It needs no language model's table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from src.core.checkpoints import load_weights, save_weights
from src.core.errors import ArtefactError
from src.core.paths import MANIFEST, atomic_folder, require_finished, write_json
from src.data.examples import SequenceData
from src.data.id_map import IdMap
from src.student.models import SequenceStudent, build_student
from src.student.settings import StudentSettings

WEIGHTS = "model.safetensors"
ID_MAP = "id_map.json"


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
    manifest = require_finished(folder)
    settings = TypeAdapter(StudentSettings).validate_python(manifest["settings"])
    saved_map = IdMap.load(folder / ID_MAP)
    if data is not None and saved_map.fingerprint != data.id_map.fingerprint:
        raise ArtefactError.one(
            "id map", saved_map.fingerprint, f"the student in {folder} knows other items than this dataset"
        )
    student = build_student(settings, manifest["num_items"], manifest["history_length"])
    try:
        student.load_state_dict(load_weights(folder / WEIGHTS))
    except RuntimeError as error:
        raise ArtefactError.one("weights", str(folder), f"do not fit the saved settings ({error})") from None
    return student.eval(), settings
