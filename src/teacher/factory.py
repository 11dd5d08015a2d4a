"""Building, saving and loading a teacher.

A saved teacher is a folder: `adapter/` (a standard PEFT adapter folder), gate, projector and head as safetensors,
`encoder/` (a saved student), the id map, the language model itself where it was built here (`llm/`), and the manifest.
Its objective may add files of its own (`candidates/` of a teacher that writes titles). `README.md` is its model card.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from pydantic.dataclasses import dataclass as document
from torch import nn

from src.core.checkpoints import load_weights, save_weights
from src.core.checksums import checksum_files, verify_files
from src.core.documents import PARTIAL, conform, read_mapping
from src.core.errors import ArtefactError, ModelError
from src.core.paths import MANIFEST, atomic_folder, require_finished, write_json
from src.data.examples import SequenceData
from src.data.id_map import IdMap
from src.student.architectures.sasrec import SASRec
from src.student.artefact import load_student, save_student
from src.teacher.backbone.gated_lora import (
    ADAPTER,
    GatedAdapters,
    attach,
    checkpoint_activations,
    compile_forward,
    inject,
    probe_layouts,
    resolve_targets,
    without_checkpointing_warnings,
)
from src.teacher.backbone.gates import build_gate
from src.teacher.backbone.llm import LanguageModel, load_llm
from src.teacher.backbone.model_config import context_of
from src.teacher.backbone.model_files import ADAPTER_CONFIG
from src.teacher.backbone.model_fingerprint import fingerprint_llm
from src.teacher.backbone.transformers_calls import is_local, named_errors
from src.teacher.ilora_model import GatedTeacher
from src.teacher.objective import objective_of
from src.teacher.operations.model_card import model_card
from src.teacher.settings import TINY, TeacherSettings

SCHEMA_VERSION = 1
ADAPTER_FOLDER, ENCODER_FOLDER, LLM_FOLDER, ID_MAP = "adapter", "encoder", "llm", "id_map.json"
CARD = "README.md"
_AGAIN = "run python -m src.exp.run_teacher again"


def build_teacher(
    settings: TeacherSettings, id_map: IdMap, encoder: SASRec, llm: LanguageModel, device: torch.device
) -> GatedTeacher:
    """Build a new teacher around a pretrained encoder and language model; draws from torch's global stream.

    Args:
        settings: objective, adapters, gate and prompts.
        id_map: the items and their titles.
        encoder: the recommender that feeds gate and prompts.
        llm: what `load_llm` gave; adapters are put into it, not into a copy.
        device: where the teacher computes.

    Raises:
        DataError: missing titles, or one that the model cannot hold.
        ModelError: layers that are not there, or a model that the objective cannot use.
        ConfigError: prompts that do not fit.
    """
    objective = objective_of(settings.objective)
    # a head that the objective puts back is no layer to adapt, whatever it is called
    targets, _ = resolve_targets(llm.model, settings.lora)
    llm = objective.language_model(llm)
    prompts = objective.prompts(settings, id_map, llm.tokenizer, context_of(llm.model))
    adapters = _prepare(inject(llm.model, replace(settings.lora, target_modules=tuple(targets))), settings)
    gate = build_gate(settings.gate, encoder.representation, settings.lora.experts)
    return objective.assemble(settings, llm, adapters, encoder, gate, prompts).to(device)


def _prepare(adapters: GatedAdapters, settings: TeacherSettings) -> GatedAdapters:
    """How the language model's passes run: recomputed in the backward pass, or compiled."""
    with named_errors(settings.llm):
        probe_layouts(adapters)
    if settings.gradient_checkpointing:
        checkpoint_activations(adapters)
    if settings.compile:
        compile_forward(adapters)
    return adapters


def save_teacher(folder: Path, teacher: GatedTeacher, data: SequenceData, summary: Mapping[str, Any]) -> None:
    """Write a teacher's folder atomically.

    Args:
        folder: where it is written.
        teacher: as it was trained.
        data: whose id map and fingerprints it carries.
        summary: how the training went; stands in the manifest and on the card.
    """
    settings = teacher.settings
    fingerprints = {**data.fingerprints(), **teacher.fingerprints(), "llm": teacher.language.fingerprint}
    with atomic_folder(folder) as target:
        teacher.llm.save_pretrained(target / ADAPTER_FOLDER, save_embedding_layers=False)
        _make_portable(target / ADAPTER_FOLDER, settings, teacher.language.name)
        card = model_card(
            settings, teacher.language.name, teacher.num_items, fingerprints, summary, teacher.small_parts
        )
        (target / CARD).write_text(card, encoding="utf-8")
        for name in teacher.small_parts:
            save_weights(target / f"{name}.safetensors", getattr(teacher, name).state_dict())
        save_student(target / ENCODER_FOLDER, teacher.encoder, settings.encoder, data.id_map, data.fingerprints(), {})
        data.id_map.save(target / ID_MAP)
        objective_of(settings.objective).save(target, teacher, data)
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
                # PEFT's file; ours carry their own, and adapter_config.json may be changed by hand
                "files": checksum_files(target, f"{ADAPTER_FOLDER}/*.safetensors"),
            },
        )


def _make_portable(folder: Path, settings: TeacherSettings, llm: str) -> None:
    """An adapter folder that others can use: no empty form for a card, no path of this machine.

    The base model's name is its hub id; a model that was built here lies beside the adapter, and a local folder is
    named without its path.
    """
    (folder / CARD).unlink(missing_ok=True)
    config = read_mapping(folder / ADAPTER_CONFIG, dict[str, Any])
    if settings.llm == TINY:
        config["base_model_name_or_path"] = f"../{LLM_FOLDER}"
    elif is_local(llm):
        config["base_model_name_or_path"] = Path(llm).name
    write_json(folder / ADAPTER_CONFIG, config)


def load_teacher(folder: Path, settings: TeacherSettings, data: SequenceData, device: torch.device) -> GatedTeacher:
    """Read a saved teacher, in eval mode; it gives the outputs that it gave when it was saved.

    The saved settings decide its shape and how its language model is quantised.

    Args:
        folder: the saved teacher.
        settings: its objective; where its language model is now (``llm``), in which types it computes (``dtype``,
            ``lora.compute``), and whether it is compiled or checkpointed.
        data: the dataset, split.
        device: where the teacher computes.

    Raises:
        ArtefactError: an unfinished or damaged folder, another objective, another catalogue, another language model or
            other prompts, each by name.
        ConfigError: this machine cannot quantise.
    """
    saved = _open(folder, settings, data, device)
    objective = objective_of(saved.settings.objective)
    llm = objective.language_model(saved.llm)
    prompts = objective.prompts(saved.settings, data.id_map, llm.tokenizer, context_of(llm.model))
    saved.require_prompt(prompts.fingerprint)
    adapters, gate = saved.trained(llm, settings)
    teacher = saved.fill(objective.assemble(saved.settings, llm, adapters, saved.encoder, gate, prompts), device)
    objective.restore(folder, teacher, data)
    return teacher


@document(frozen=True, config=PARTIAL)
class _Manifest:
    """What is read of the manifest."""

    settings: TeacherSettings
    llm: str
    fingerprints: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Saved:
    """What stands in a teacher's folder, whatever its objective: verified, not yet put together."""

    folder: Path
    settings: TeacherSettings
    llm: LanguageModel
    encoder: SASRec
    prompt: str

    def require_prompt(self, found: str) -> None:
        """Raise ``ArtefactError`` unless prompts have the fingerprint of those that the teacher was trained with."""
        if found != self.prompt:
            rule = f"the teacher in {self.folder} was trained with other prompts"
            raise ArtefactError.one("prompt", found, rule, _AGAIN)

    def trained(self, llm: LanguageModel, now: TeacherSettings) -> tuple[GatedAdapters, nn.Module]:
        """The adapters in the language model, as ``now`` runs it, and a gate whose weights `fill` brings."""
        lora = replace(self.settings.lora, compute=now.lora.compute)
        adapters = attach(_load_adapter(llm, self.folder / ADAPTER_FOLDER), lora)
        return _prepare(adapters, now), build_gate(
            self.settings.gate, self.encoder.representation, self.settings.lora.experts
        )

    def fill(self, teacher: GatedTeacher, device: torch.device) -> GatedTeacher:
        """The teacher with its saved weights, on its device, in eval mode."""
        for name in teacher.small_parts:
            _load_part(getattr(teacher, name), self.folder / f"{name}.safetensors")
        return teacher.to(device).eval()


def _open(folder: Path, settings: TeacherSettings, data: SequenceData, device: torch.device) -> _Saved:
    kept = require_finished(folder)
    if kept.get("kind") != "teacher" or kept.get("schema_version") != SCHEMA_VERSION:
        found = f"{kept.get('kind')} {kept.get('schema_version')}"
        raise ArtefactError.one("kind", found, f"teacher {SCHEMA_VERSION} is needed", _AGAIN)
    manifest = conform(kept, _Manifest, folder / MANIFEST, _AGAIN)
    _check(folder, manifest, data)
    verify_files(folder, manifest.files, _AGAIN)
    own = manifest.settings
    if own.objective != settings.objective:
        rule = f"the teacher in {folder} has objective {own.objective}; {settings.objective} is needed"
        raise ArtefactError.one("teacher.objective", own.objective, rule, _AGAIN)
    llm = load_llm(_find_llm(folder, settings, manifest), settings.dtype, device, own.quantise)
    encoder, _ = load_student(folder / ENCODER_FOLDER, data)
    if not isinstance(encoder, SASRec):
        raise ArtefactError.one("encoder", type(encoder).__name__, "must be a SASRec", _AGAIN)
    return _Saved(folder, own, llm, encoder, manifest.fingerprints["prompt"])


def _check(folder: Path, manifest: _Manifest, data: SequenceData) -> None:
    if missing := {"id_map", "llm", "prompt"} - manifest.fingerprints.keys():
        rule = f"names no fingerprint of {', '.join(sorted(missing))}"
        raise ArtefactError.one("file", str(folder / MANIFEST), rule, _AGAIN)
    if manifest.fingerprints["id_map"] != data.id_map.fingerprint:
        saved = IdMap.load(folder / ID_MAP)
        rule = f"the teacher in {folder} knows {saved.num_items} other items; this dataset has {data.num_items}"
        raise ArtefactError.one("id map", saved.fingerprint, rule, _AGAIN)


def _find_llm(folder: Path, settings: TeacherSettings, manifest: _Manifest) -> str:
    """The teacher's own copy, else where the settings say, else where training found it; checked by fingerprint."""
    if (folder / LLM_FOLDER).is_dir():
        name = str(folder / LLM_FOLDER)
    else:
        name = manifest.llm if settings.llm == TINY else settings.llm
    if is_local(name) and not Path(name).is_dir():
        raise ModelError.one(
            "teacher.llm", name, f"the language model of the teacher in {folder} is gone", "say where with teacher.llm"
        )
    found, wanted = fingerprint_llm(name), manifest.fingerprints["llm"]
    if found != wanted:
        raise ArtefactError.one(
            "llm", name, f"is another language model ({found}) than the teacher's in {folder} ({wanted})", _AGAIN
        )
    return name


def _load_adapter(llm: LanguageModel, folder: Path) -> PeftModel:
    try:
        with without_checkpointing_warnings():
            return PeftModel.from_pretrained(llm.model, str(folder), adapter_name=ADAPTER, is_trainable=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtefactError.one("adapter", str(folder), f"cannot be read ({error})", _AGAIN) from None


def _load_part(part: nn.Module, file: Path) -> None:
    try:
        part.load_state_dict(load_weights(file))
    except RuntimeError as error:
        raise ArtefactError.one("weights", str(file), f"do not fit the saved settings ({error})", _AGAIN) from None
