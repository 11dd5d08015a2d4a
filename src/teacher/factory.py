"""Building, saving and loading a teacher.

A saved teacher is a folder: `adapter/` (a standard PEFT adapter folder), gate, projector and head as safetensors,
`encoder/` (a saved student), the id map, the language model itself where it was built here (`llm/`), and the manifest.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from pydantic import TypeAdapter
from torch import nn

from src.core.checkpoints import load_weights, save_weights
from src.core.errors import ArtefactError, ModelError, Problem
from src.core.paths import MANIFEST, atomic_folder, require_finished, write_json
from src.data.examples import SequenceData
from src.data.id_map import IdMap
from src.student.artefact import load_student, save_student
from src.student.models import SASRec
from src.teacher.gated_lora import ADAPTER, attach, both_names, checkpoint_activations, inject
from src.teacher.gates import build_gate
from src.teacher.ilora_model import ILoRATeacher
from src.teacher.llm import LanguageModel, fingerprint_llm, is_local, load_llm
from src.teacher.prompts import Prompts
from src.teacher.settings import TINY, TeacherSettings

SCHEMA_VERSION = 1
ADAPTER_FOLDER, ENCODER_FOLDER, LLM_FOLDER, ID_MAP = "adapter", "encoder", "llm", "id_map.json"
_PARTS = ("gate", "projector", "head")
_AGAIN = "run python -m src.exp.run_teacher again"


def build_teacher(
    settings: TeacherSettings, id_map: IdMap, encoder: SASRec, llm: LanguageModel, device: torch.device
) -> ILoRATeacher:
    """A new teacher around a pretrained encoder and language model; draws from torch's global stream.

    Raises ``DataError`` for missing titles, ``ModelError`` for layers that are not there, ``ConfigError`` for prompts
    that do not fit.
    """
    prompts = Prompts(id_map, llm.tokenizer, settings.prompt)
    adapters = inject(llm.model, settings.lora)
    if settings.gradient_checkpointing:
        checkpoint_activations(adapters)
    gate = build_gate(settings.gate, encoder.representation, settings.lora.experts)
    return ILoRATeacher(settings, llm, adapters, encoder, gate, prompts).to(device)


def save_teacher(folder: Path, teacher: ILoRATeacher, data: SequenceData, summary: Mapping[str, Any]) -> None:
    """Write the folder atomically; ``summary`` (how the training went) stands in the manifest."""
    settings = teacher.settings
    fingerprints = {**data.fingerprints(), **teacher.fingerprints(), "llm": teacher.language.fingerprint}
    with atomic_folder(folder) as target:
        teacher.llm.save_pretrained(target / ADAPTER_FOLDER, save_embedding_layers=False)
        for name in _PARTS:
            save_weights(target / f"{name}.safetensors", getattr(teacher, name).state_dict())
        save_student(target / ENCODER_FOLDER, teacher.encoder, settings.encoder, data.id_map, data.fingerprints(), {})
        data.id_map.save(target / ID_MAP)
        if settings.llm == TINY:
            shutil.copytree(teacher.language.name, target / LLM_FOLDER)
        write_json(
            target / MANIFEST,
            {
                "kind": "teacher",
                "schema_version": SCHEMA_VERSION,
                "settings": asdict(settings),
                "llm": teacher.language.name,
                "fingerprints": fingerprints,
                "summary": dict(summary),
            },
        )


def load_teacher(folder: Path, settings: TeacherSettings, data: SequenceData, device: torch.device) -> ILoRATeacher:
    """Read a saved teacher, in eval mode; it gives the outputs that it gave when it was saved.

    The saved settings decide its shape; ``settings.llm`` and ``settings.dtype`` say where the language model is now and
    in which type it computes. Raises ``ArtefactError`` for an unfinished or damaged folder, another catalogue, another
    language model or other prompts, each by name.
    """
    manifest = require_finished(folder)
    _check(folder, manifest, data)
    own = TypeAdapter(TeacherSettings).validate_python(manifest["settings"])
    llm = load_llm(_find_llm(folder, settings, manifest), settings.dtype, device)
    prompts = Prompts(data.id_map, llm.tokenizer, own.prompt)
    if prompts.fingerprint != manifest["fingerprints"]["prompt"]:
        raise ArtefactError.one(
            "prompt", prompts.fingerprint, f"the teacher in {folder} was trained with other prompts", _AGAIN
        )
    encoder, _ = load_student(folder / ENCODER_FOLDER, data)
    if not isinstance(encoder, SASRec):
        raise ArtefactError.one("encoder", type(encoder).__name__, "must be a SASRec", _AGAIN)
    adapters = attach(_load_adapter(llm, folder / ADAPTER_FOLDER), own.lora.experts)
    if settings.gradient_checkpointing:
        checkpoint_activations(adapters)
    gate = build_gate(own.gate, encoder.representation, own.lora.experts)
    teacher = ILoRATeacher(own, llm, adapters, encoder, gate, prompts)
    for name in _PARTS:
        _load_part(getattr(teacher, name), folder / f"{name}.safetensors")
    return teacher.to(device).eval()


def _check(folder: Path, manifest: Mapping[str, Any], data: SequenceData) -> None:
    problems = []
    if manifest.get("kind") != "teacher" or manifest.get("schema_version") != SCHEMA_VERSION:
        found = f"{manifest.get('kind')} {manifest.get('schema_version')}"
        problems.append(Problem("kind", found, f"teacher {SCHEMA_VERSION} is needed", _AGAIN))
    elif manifest["fingerprints"]["id_map"] != data.id_map.fingerprint:
        saved = IdMap.load(folder / ID_MAP)
        rule = f"the teacher in {folder} knows {saved.num_items} other items; this dataset has {data.num_items}"
        problems.append(Problem("id map", saved.fingerprint, rule, _AGAIN))
    if problems:
        raise ArtefactError(problems)


def _find_llm(folder: Path, settings: TeacherSettings, manifest: Mapping[str, Any]) -> str:
    """The teacher's own copy, else where the settings say, else where training found it; checked by fingerprint."""
    if (folder / LLM_FOLDER).is_dir():
        name = str(folder / LLM_FOLDER)
    else:
        name = str(manifest["llm"]) if settings.llm == TINY else settings.llm
    if is_local(name) and not Path(name).is_dir():
        raise ModelError.one(
            "teacher.llm", name, f"the language model of the teacher in {folder} is gone", "say where with teacher.llm"
        )
    found, wanted = fingerprint_llm(name), manifest["fingerprints"]["llm"]
    if found != wanted:
        raise ArtefactError.one(
            "llm", name, f"is another language model ({found}) than the teacher's in {folder} ({wanted})", _AGAIN
        )
    return name


def _load_adapter(llm: LanguageModel, folder: Path) -> PeftModel:
    try:
        with both_names():
            return PeftModel.from_pretrained(llm.model, str(folder), adapter_name=ADAPTER, is_trainable=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtefactError.one("adapter", str(folder), f"cannot be read ({error})", _AGAIN) from None


def _load_part(part: nn.Module, file: Path) -> None:
    try:
        part.load_state_dict(load_weights(file))
    except RuntimeError as error:
        raise ArtefactError.one("weights", str(file), f"do not fit the saved settings ({error})", _AGAIN) from None
