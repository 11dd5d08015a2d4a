"""The README of a saved teacher: a Hugging Face model card that says what the folder is and how it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from src.teacher.backbone.transformers_calls import is_local
from src.teacher.objective import objective_of
from src.teacher.settings import TINY, TeacherSettings


def model_card(
    settings: TeacherSettings,
    llm: str,
    num_items: int,
    fingerprints: Mapping[str, str],
    summary: Mapping[str, Any],
    parts: Sequence[str],
) -> str:
    """Write the card's text.

    Args:
        settings: the teacher's.
        llm: folder or hub id of the language model.
        num_items: V.
        fingerprints: what identifies data, model and prompts.
        summary: how the training went.
        parts: the trained modules beside the adapter, each in a file of its own.
    """
    return "\n".join(
        [
            *_front_matter(settings, llm),
            "# iLoRA teacher",
            "",
            *_what(settings, llm, num_items, parts),
            "",
            "## How it is read",
            "",
            *_how(settings, llm),
            "",
            *_table("Metrics on the validation sample", summary.get("validation", {})),
            *_table("Training", {name: summary[name] for name in _TOLD if name in summary}),
            *_table("Fingerprints", fingerprints),
        ]
    )


_TOLD = ("different_rows", "rows_trained", "epochs", "best_epoch", "steps", "gate_entropy", "seconds")


def _base_model(settings: TeacherSettings, llm: str) -> str | None:
    """The hub id; a local folder's path says nothing to others."""
    return None if settings.llm == TINY or is_local(llm) else llm


def _front_matter(settings: TeacherSettings, llm: str) -> list[str]:
    """YAML; a JSON string is also a YAML one, whatever characters it holds."""
    base = _base_model(settings, llm)
    named = [f"base_model: {json.dumps(base)}"] if base is not None else []
    tags = ("lora", "ilora", "sequential-recommendation", "knowledge-distillation")
    return ["---", *named, "library_name: peft", "tags:", *(f"- {tag}" for tag in tags), "---", ""]


def _what(settings: TeacherSettings, llm: str, num_items: int, parts: Sequence[str]) -> list[str]:
    lora, objective = settings.lora, objective_of(settings.objective)
    kinds = {TINY: "a small LLaMA built from the dataset's own text (`llm/`)"}
    named = kinds.get(settings.llm, f"`{_base_model(settings, llm) or 'a model in a local folder'}`")
    bits = "" if settings.quantise == "none" else f", in {settings.quantise}"
    return [
        f"A sequential recommender over {num_items:,} items: {named}, frozen{bits}, with {lora.experts} LoRA experts",
        f"of rank {lora.rank // lora.experts} each that a gate mixes for every history (iLoRA, Kong et al., 2024).",
        objective.card_sentence,
        "",
        "- `adapter/`: the experts, as a standard PEFT adapter folder",
        f"- {', '.join(f'`{part}.safetensors`' for part in parts)}",
        "- `encoder/`: the frozen SASRec that feeds the gate; `id_map.json`: the items; `manifest.json`: all settings",
    ]


def _how(settings: TeacherSettings, llm: str) -> list[str]:
    kind = objective_of(settings.objective).auto_class
    where = "llm" if settings.llm == TINY else _base_model(settings, llm) or "FOLDER-OF-THE-LANGUAGE-MODEL"
    return [
        "As it was trained, with the gate, in a checkout of anyo-ilora-dllm2rec (`settings`, `data`: an experiment's):",
        "",
        "```python",
        "from src.teacher.factory import load_teacher",
        "",
        "teacher = load_teacher(folder, settings.teacher, data, device)",
        "```",
        "",
        "The adapter alone, anywhere, with all experts weighing the same:",
        "",
        "```python",
        "from peft import PeftModel",
        f"from transformers import {kind}",
        "",
        f'model = PeftModel.from_pretrained({kind}.from_pretrained("{where}"), "adapter")',
        "```",
    ]


def _table(title: str, values: Mapping[str, Any]) -> list[str]:
    """Nothing where there are no values."""
    if not values:
        return []
    rows = [f"| {name} | {_shown(value)} |" for name, value in values.items()]
    return [f"## {title}", "", "| | |", "|---|---|", *rows, ""]


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
