"""What the tests of the teacher are built from: random models with real tokenizers, and a teacher around them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import processors
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from src.core.training import LoopSettings
from src.data.examples import SequenceData
from src.data.teacher_outputs import TeacherOutputs
from src.student.architectures.sasrec import SASRec
from src.student.settings import StudentSettings
from src.teacher.backbone.llm import load_llm
from src.teacher.backbone.tiny_llm import train_tokenizer
from src.teacher.factory import build_teacher
from src.teacher.ilora_model import ILoRATeacher
from src.teacher.interfaces import Teacher
from src.teacher.labelling.labels import item_head_labeller, teacher_outputs
from src.teacher.settings import (
    ExportSettings,
    HeadSettings,
    LoraSettings,
    PromptSettings,
    TeacherSettings,
    TeacherTrainSettings,
    TinySettings,
)
from tests.fixtures import NUM_ITEMS, WINDOW, id_map_of, student_of

CPU = torch.device("cpu")
WIDTH = 16
ENCODER = student_of(width=8, dropout=0.5)
SETTINGS = TeacherSettings(
    encoder=ENCODER,
    lora=LoraSettings(rank=8, experts=4, alpha=16.0),
    prompt=PromptSettings(max_tokens=64),
    head=HeadSettings(fit_rows=16),
    train=TeacherTrainSettings(loop=LoopSettings(epochs=1, batch_size=8, patience=1)),
    train_rows=0,
    validation_rows=0,
    export=ExportSettings(budget=1.0, top_n=5, batch_size=4),
)


def _tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(id_map_of(NUM_ITEMS), TinySettings(vocabulary=300))


def save_random_llama(folder: Path) -> Path:
    """A LLaMA of two layers, without a language-model head."""
    torch.manual_seed(1)
    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        attention_dropout=0.3,
    )
    return _save(folder, LlamaModel(config), tokenizer)


def save_random_bert(folder: Path) -> Path:
    """A BERT of two layers whose tokenizer puts two special tokens around a text. It has a pooler, and dropout."""
    torch.manual_seed(2)
    tokenizer = _tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        hidden_dropout_prob=0.3,
    )
    ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=ends
    )
    return _save(folder, BertModel(config), tokenizer)


def _save(folder: Path, model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> Path:
    for parameter in model.parameters():
        # the usual initialisation is so small that nothing would depend on anything
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def encoder_of(settings: StudentSettings = ENCODER, num_items: int = NUM_ITEMS) -> SASRec:
    """A SASRec with weights large enough to tell histories apart."""
    torch.manual_seed(3)
    encoder = SASRec(settings, num_items, WINDOW)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(std=0.5)
    return encoder


def teacher_of(folder: Path, settings: TeacherSettings = SETTINGS, awake: bool = True, **changes: Any) -> ILoRATeacher:
    """A teacher in eval mode around a folder's model; ``awake``: its experts' B are not zero, as after training."""
    settings = replace(settings, llm=str(folder), **changes)
    language = load_llm(str(folder), settings.dtype, CPU)
    torch.manual_seed(4)
    teacher = build_teacher(settings, id_map_of(NUM_ITEMS), encoder_of(), language, CPU)
    if awake:
        with torch.no_grad():
            for name, parameter in teacher.llm.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
    return teacher.eval()


def label(teacher: Teacher, data: SequenceData, rows: NDArray[np.int64], settings: ExportSettings) -> TeacherOutputs:
    """An item head's labels of these rows of the training split, without a cache."""
    labeller = item_head_labeller(teacher, settings)
    return teacher_outputs(labeller.label(data.train.take(rows)), labeller.catalogue_outputs(), data, settings)
