"""A saved student: safetensors, its settings, its prior, the id map. It needs no language model's table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from src.core.checkpoints import load_weights, save_weights
from src.core.errors import ArtefactError
from src.core.paths import MANIFEST, atomic_folder, require_finished, write_json
from src.data.examples import SequenceData
from src.data.id_map import IdMap
from src.student.base import ClosedForm, Recommender, SequenceStudent
from src.student.models import build_recommender
from src.student.settings import StudentSettings, read_student_settings

WEIGHTS = "model.safetensors"
ID_MAP = "id_map.json"
#: the folder of a student's prior, beside its weights
PRIOR = "prior"


def save_student(
    folder: Path,
    student: Recommender,
    settings: StudentSettings,
    id_map: IdMap,
    fingerprints: Mapping[str, str],
    extra: Mapping[str, Any],
) -> None:
    """Write weights, id map, prior and manifest atomically.

    Args:
        folder: where; replaced when it exists.
        student: of any architecture.
        settings: what it was built from.
        id_map: which item stands behind which index.
        fingerprints: those of the data that it was trained on (`SequenceData.fingerprints`).
        extra: added to the manifest.
    """
    with atomic_folder(folder) as target:
        id_map.save(target / ID_MAP)
        manifest = {**write_model(target, student, settings), "fingerprints": dict(fingerprints), **extra}
        if isinstance(student, SequenceStudent) and student.prior is not None:
            manifest["prior_scale"] = student.prior_scale
            (target / PRIOR).mkdir()
            write_json(target / PRIOR / MANIFEST, write_model(target / PRIOR, student.prior, student.prior.settings))
        write_json(target / MANIFEST, manifest)


def write_model(folder: Path, model: Recommender, settings: StudentSettings) -> dict[str, Any]:
    """A model's weights; returns what is needed to build it again."""
    save_weights(folder / WEIGHTS, model.state_dict())
    return {"kind": "student", "settings": asdict(settings), "num_items": model.num_items, "window": model.window}


def load_student(folder: Path, data: SequenceData | None = None) -> tuple[Recommender, StudentSettings]:
    """Read a saved student in eval mode, on the CPU.

    Raises:
        ArtefactError: the folder is unfinished or damaged, or its items are not those of ``data``.
    """
    manifest = require_finished(folder)
    saved_map = IdMap.load(folder / ID_MAP)
    if data is not None and saved_map.fingerprint != data.id_map.fingerprint:
        raise ArtefactError.one(
            "id map", saved_map.fingerprint, f"the student in {folder} knows other items than this dataset"
        )
    student, settings = read_model(folder, manifest)
    if manifest.get("prior_scale") is not None:
        prior, _ = read_model(folder / PRIOR, require_finished(folder / PRIOR))
        if not isinstance(student, SequenceStudent) or not isinstance(prior, ClosedForm):
            raise ArtefactError.one("prior", str(folder / PRIOR), "is no model in closed form beside a network")
        student.add_prior(prior, float(manifest["prior_scale"]))
    try:
        student.load_state_dict(load_weights(folder / WEIGHTS))
    except RuntimeError as error:
        raise ArtefactError.one("weights", str(folder), f"do not fit the saved settings ({error})") from None
    return student.eval(), settings


def read_model(folder: Path, manifest: Mapping[str, Any]) -> tuple[Recommender, StudentSettings]:
    """A model as its manifest describes it; one in closed form with its weights."""
    try:
        settings = read_student_settings(manifest["settings"])
        model = build_recommender(settings, int(manifest["num_items"]), int(manifest["window"]))
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise ArtefactError.one("student", str(folder), f"its manifest is not of this version ({error})") from None
    if isinstance(model, ClosedForm):
        try:
            model.load_state_dict(load_weights(folder / WEIGHTS))
        except RuntimeError as error:
            raise ArtefactError.one("weights", str(folder), f"do not fit the saved settings ({error})") from None
    return model, settings
