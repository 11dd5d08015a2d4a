"""A saved student: safetensors, its settings, its prior, the id map. It needs no language model's table."""

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
from src.data.item_text import TextSource
from src.student.base import ClosedForm, Recommender, SequenceStudent
from src.student.models import OwnStudentSettings, build_recommender
from src.student.settings import AnyStudentSettings, StudentSettings

WEIGHTS = "model.safetensors"
#: what scores an item from its text, beside the weights of a model that does
FROM_TEXT = "from_text.safetensors"
ID_MAP = "id_map.json"
#: the folder of a student's prior, beside its weights
PRIOR = "prior"
_AGAIN = "train the student again"


@document(frozen=True, config=PARTIAL)
class ModelFacts:
    """What is read of a model's manifest: all that is needed to build it again."""

    settings: AnyStudentSettings
    num_items: Annotated[int, Field(ge=1)]
    window: Annotated[int, Field(ge=1, le=10_000)]


@document(frozen=True, config=PARTIAL)
class _Manifest(ModelFacts):
    """What is read of a student's manifest."""

    prior_scale: Annotated[float, Field(gt=0)] | None = None  # PARTIAL: finite
    text_source: TextSource | None = None
    fingerprints: dict[str, str] = Field(default_factory=dict)


def save_student(
    folder: Path,
    student: Recommender,
    settings: StudentSettings,
    id_map: IdMap,
    fingerprints: Mapping[str, str],
    extra: Mapping[str, Any],
    text_source: TextSource | None = None,
) -> None:
    """Write weights, id map, prior and manifest atomically.

    Args:
        folder: where; replaced when it exists.
        student: of any architecture.
        settings: what it was built from.
        id_map: which item stands behind which index.
        fingerprints: those of the data that it was trained on (`SequenceData.fingerprints`).
        extra: added to the manifest.
        text_source: where the embeddings come from of which a student scores items, if it does.
    """
    with atomic_folder(folder) as target:
        id_map.save(target / ID_MAP)
        manifest = {**write_model(target, student, settings), "fingerprints": dict(fingerprints), **extra}
        if text_source is not None and student.from_text:
            manifest["text_source"] = asdict(text_source)
        if isinstance(student, SequenceStudent) and student.prior is not None:
            manifest["prior_scale"] = student.prior_scale
            (target / PRIOR).mkdir()
            write_json(target / PRIOR / MANIFEST, write_model(target / PRIOR, student.prior, student.prior.settings))
        write_json(target / MANIFEST, manifest)


def text_source_of(folder: Path) -> TextSource | None:
    """Where a saved student's text embeddings come from; None for one that reads none."""
    return conform(require_finished(folder), _Manifest, folder / MANIFEST, _AGAIN).text_source


def fingerprints_of(folder: Path) -> dict[str, str]:
    """Those of the data that a saved student was trained on, by name."""
    return conform(require_finished(folder), _Manifest, folder / MANIFEST, _AGAIN).fingerprints


def write_model(folder: Path, model: Recommender, settings: StudentSettings) -> dict[str, Any]:
    """A model's weights; returns what is needed to build it again.

    Args:
        folder: that exists.
        model: of any architecture.
        settings: what it was built from.
    """
    save_weights(folder / WEIGHTS, model.state_dict())
    if model.from_text:
        save_weights(folder / FROM_TEXT, model.from_text)
    return {"kind": "student", "settings": asdict(settings), "num_items": model.num_items, "window": model.window}


def load_student(folder: Path, data: SequenceData | None = None) -> tuple[Recommender, StudentSettings]:
    """Read a saved student in eval mode, on the CPU.

    Raises:
        ArtefactError: the folder is unfinished or damaged, or its items are not those of ``data``.
    """
    manifest = conform(require_finished(folder), _Manifest, folder / MANIFEST, _AGAIN)
    saved_map = IdMap.load(folder / ID_MAP)
    if data is not None and saved_map.fingerprint != data.id_map.fingerprint:
        raise ArtefactError.one(
            "id map", saved_map.fingerprint, f"the student in {folder} knows other items than this dataset"
        )
    if manifest.num_items != saved_map.num_items:
        rule = f"the id map beside it has {saved_map.num_items} items: {folder} is damaged"
        raise ArtefactError.one("num_items", manifest.num_items, rule, _AGAIN)
    if manifest.prior_scale is None:
        return read_model(folder, manifest).eval(), manifest.settings
    facts = conform(require_finished(folder / PRIOR), ModelFacts, folder / PRIOR / MANIFEST, _AGAIN)
    prior = read_closed_form(folder / PRIOR, facts)
    if facts.num_items != manifest.num_items:
        rule = f"scores {facts.num_items} items, the network {manifest.num_items}"
        raise ArtefactError.one("prior", str(folder / PRIOR), rule, _AGAIN)
    return read_model(folder, manifest, (prior, manifest.prior_scale)).eval(), manifest.settings


def read_model(folder: Path, facts: ModelFacts, prior: tuple[ClosedForm, float] | None = None) -> Recommender:
    """A model with its weights, as its manifest describes it.

    Args:
        folder: where `write_model` put the weights.
        facts: what stands in the manifest.
        prior: of a network that has one, with its scale.

    Raises:
        ArtefactError: the weights are missing or damaged, or do not fit the facts.
    """

    def build() -> Recommender:
        model = build_recommender(facts.settings, facts.num_items, facts.window)
        if prior is not None:
            if not isinstance(model, SequenceStudent):
                raise ArtefactError.one("prior", str(folder), "stands beside a model that is no network", _AGAIN)
            model.add_prior(*prior)
        return model

    weights = load_weights(folder / WEIGHTS)
    try:
        # on no device first: numbers that do not fit the weights must not fill the memory
        if not isinstance(facts.settings, OwnStudentSettings):  # whose code may need numbers
            with torch.device("meta"):
                _require_shapes(build(), weights)
        model = build()
        # a comparison holds many students, each with its prior of V² numbers: those stay in their files
        closed = isinstance(model, ClosedForm)
        model.load_state_dict(_as_built(model, weights) if closed else weights, assign=closed)
        if (folder / FROM_TEXT).is_file():
            model.from_text = load_weights(folder / FROM_TEXT)
            _require_text(model)
        elif facts.settings.reads_text:
            raise ArtefactError.one("file", str(folder / FROM_TEXT), "is missing", _AGAIN)
    except (RuntimeError, TypeError, ValueError, OverflowError, ConfigError) as error:
        raise ArtefactError.one("weights", str(folder), f"do not fit the saved settings ({error})", _AGAIN) from None
    return model


def read_closed_form(folder: Path, facts: ModelFacts) -> ClosedForm:
    """As `read_model`, for a model in closed form; raises ``ArtefactError`` for any other."""
    model = read_model(folder, facts)
    if not isinstance(model, ClosedForm):
        raise ArtefactError.one("prior", str(folder), "is no model in closed form", _AGAIN)
    return model


def _require_text(model: Recommender) -> None:
    """Raises ``RuntimeError`` unless what scores an item from its text is this model's, by name and shape."""
    found = {name: tuple(value.shape) for name, value in model.from_text.items()}
    width = found.get("mean", (0,))[0]
    wanted = model.text_shapes(width)
    if wanted and wanted != found:
        other = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise RuntimeError(f"{len(other)} maps of texts, such as {other[0]}: {found.get(other[0])}")


def _as_built(model: Recommender, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in the types that the model has; the same tensors where they are in these already."""
    types = {name: value.dtype for name, value in model.state_dict().items()}
    return {name: value.to(types.get(name, value.dtype)) for name, value in weights.items()}


def _require_shapes(model: Recommender, weights: Mapping[str, Tensor]) -> None:
    """Raises ``RuntimeError`` unless the weights are this model's, by name and shape."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if wanted != found:
        other = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise RuntimeError(f"{len(other)} parameters, such as {other[0]}: {found.get(other[0])}")
