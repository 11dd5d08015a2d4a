"""Models of trials in the store: kept whole, looked at before they are used, and trained again where they are gone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass as document

from src.core.checksums import checksum_files, verify_files
from src.core.documents import PARTIAL, read_mapping
from src.core.errors import ArtefactError, TrainingFailed
from src.core.hardware import resolve_device
from src.core.logging import get_logger
from src.core.memory import give_back
from src.core.paths import require_finished, write_json
from src.core.training import NO_CHECKPOINT, silent
from src.pipeline.settings import ExperimentSettings
from src.student.artefact import PRIOR
from src.tuning.dispatch import MODEL, Search
from src.tuning.search_space import Value
from src.tuning.shared_data import FOLDER, SharedData
from src.tuning.stage_functions import train_stage
from src.tuning.store import Store
from src.tuning.trained_model import TrainedModel
from src.tuning.trial_values import apply_values

_log = get_logger(__name__)

#: beside a trial's model: what it was trained with and came to, and what its files held
TRIAL_FILE = "trial.json"


@document(frozen=True, config=PARTIAL)
class _TrialFile:
    """What is read of `trial.json`; earlier versions noted no files."""

    files: dict[str, str] = Field(default_factory=dict)


def keep_model(
    trained: TrainedModel,
    values: Mapping[str, Value],
    attributes: Mapping[str, Any],
    scratch: Path,
    store: Store,
    name: str,
) -> None:
    """Bring a trial's model to the store, whole or not at all.

    Args:
        trained: what is kept.
        values: the configuration keys that it was trained with.
        attributes: what came of it.
        scratch: a folder that does not exist, for the model on its way.
        store: where trials leave their files.
        name: of the model's folder there.
    """
    trained.save(scratch)
    told = {"values": dict(values), **attributes, "files": checksum_files(scratch)}
    write_json(scratch / TRIAL_FILE, told)
    # a prior of V² numbers is the same in every student that has it
    store.upload(scratch, name, alike=PRIOR)


def whole_model(store: Store, name: str, place: Path) -> Path | None:
    """A trial's model on this machine; None where it is gone or, which is told, is not as `keep_model` left it.

    Args:
        store: where trials leave their files.
        name: of the model's folder there.
        place: where the model is copied to, if the store is no folder of this machine.
    """
    if not store.exists(name):
        return None
    model = store.download(name, place)
    try:
        require_finished(model)
        verify_files(model, read_mapping(model / TRIAL_FILE, _TrialFile).files)
    except ArtefactError as error:
        _log.warning("%s", error)
        return None
    return model


def train_again(search: Search, number: int, experiment: ExperimentSettings, store: Store) -> None:
    """Train a completed trial once more from its parameters, in this process, and keep its model where it was.

    Args:
        search: whose trial it is.
        number: the trial's.
        experiment: the settings that its parameters are set in.
        store: holds what trials read.

    Raises:
        TrainingFailed: another model came out, of which the figures in the record would not be true.
        AnyoError: as `train_stage`.
    """
    trial, folder = search.record.trials()[number], search.folder(number)
    _log.warning("the model of %s is gone: it is trained again from its parameters", folder)
    values = search.values(trial)
    settings = apply_values(experiment, values)
    device = resolve_device(settings.runtime.device)
    with store.scratch() as scratch:
        data = SharedData.load(store.download(FOLDER, Path(scratch) / FOLDER), device)
        trained = train_stage(search.record.space.stage, settings, data, device, silent, NO_CHECKPOINT)
        if trained.weights != trial.user_attrs.get("weights"):
            raise TrainingFailed(
                f"the model of {folder} is gone, and came out otherwise when it was trained again (on another device, "
                "or alone in place of among others): restore the folder, or start a new search"
            )
        keep_model(trained, values, trial.user_attrs, Path(scratch) / MODEL, store, f"{folder}/{MODEL}")
    give_back(device)
