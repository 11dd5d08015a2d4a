"""What the tests of `title_lm` are built from: random causal models, and a teacher around them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import normalizers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from src.core.training import LoopSettings
from src.data.id_map import IdMap
from src.teacher.backbone.llm import load_llm
from src.teacher.backbone.tiny_llm import train_tokenizer
from src.teacher.factory import build_teacher
from src.teacher.settings import (
    ExportSettings,
    HeadSettings,
    PromptSettings,
    TeacherSettings,
    TeacherTrainSettings,
    TinySettings,
    TitleSettings,
)
from src.teacher.title_lm.model import TitleTeacher
from tests.fixtures import NUM_ITEMS, id_map_of
from tests.golden.sentencepiece_file import load_tokenizer
from tests.teacher.builders import CPU, SETTINGS, encoder_of

SENTENCEPIECE = Path(__file__).parents[1] / "golden/vectors/prompts/tiny_tokenizer/tokenizer.model"
N = 4
CONTEXT = 256
TITLE_SETTINGS = replace(
    SETTINGS,
    objective="title_lm",
    prompt=PromptSettings(max_tokens=160),
    title=TitleSettings(candidates=N),
    head=HeadSettings(),
    train=TeacherTrainSettings(
        loop=LoopSettings(epochs=1, batch_size=8, patience=9, monitor="hit_ratio_1"),
        learning_rate=1e-2,
        projector_learning_rate=1e-2,
    ),
    export=ExportSettings(batch_size=4),
)
_SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "max_position_embeddings": CONTEXT}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**_SHAPE, "intermediate_size": 24, "tie_word_embeddings": False, "attention_dropout": 0.3},
    "qwen2": {**_SHAPE, "num_key_value_heads": 1, "intermediate_size": 24, "tie_word_embeddings": True},
    "gemma": {**_SHAPE, "num_key_value_heads": 1, "intermediate_size": 24, "head_dim": 8},
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": CONTEXT, "resid_pdrop": 0.3},
    "opt": {**_SHAPE, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "gpt_neox": {**_SHAPE, "intermediate_size": 24, "tie_word_embeddings": False},
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Over the titles of `id_map_of`."""
    return train_tokenizer(id_map_of(NUM_ITEMS), TinySettings(vocabulary=300))


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama-2's files make it: a word boundary in front of every text, also of one that begins with a blank."""
    reader = load_tokenizer(SENTENCEPIECE, "<s>", "</s>", "<unk>")
    reader.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return reader


def save_random_causal(
    folder: Path,
    family: str = "llama",
    deviation: float = 0.3,
    reader: PreTrainedTokenizerFast | None = None,
    **shape: int,
) -> Path:
    """A causal model of two layers whose outputs depend on everything."""
    torch.manual_seed(1)
    reader = reader or tokenizer()
    special = {"bos_token_id": reader.bos_token_id, "eos_token_id": reader.eos_token_id, "pad_token_id": 0}
    config = AutoConfig.for_model(family, vocab_size=len(reader), **special, **{**FAMILIES[family], **shape})
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=deviation)
    model.save_pretrained(folder)
    reader.save_pretrained(folder)
    return folder


def title_teacher_of(
    folder: Path,
    settings: TeacherSettings = TITLE_SETTINGS,
    awake: bool = True,
    id_map: IdMap | None = None,
    **changes: Any,
) -> TitleTeacher:
    """A teacher in eval mode; ``awake``: its experts' B are not zero, as after training."""
    settings = replace(settings, llm=str(folder), **changes)
    language = load_llm(str(folder), settings.dtype, CPU)
    torch.manual_seed(4)
    teacher = build_teacher(settings, id_map or id_map_of(NUM_ITEMS), encoder_of(), language, CPU)
    if awake:
        with torch.no_grad():
            for name, parameter in teacher.llm.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
    return teacher.eval()
