"""Settings: one default a field, and combinations that cannot hold are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from src.student.architectures.sasrec import SASRecSettings
from src.teacher.settings import (
    ExportSettings,
    GateSettings,
    HeadSettings,
    LoraSettings,
    PromptSettings,
    TeacherSettings,
    TinySettings,
    TitleSettings,
)
from tests.teacher.title_builders import TITLE_SETTINGS


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LoraSettings(rank=10, experts=4), "rank = 10 must be a multiple of lora.experts = 4"),
        (lambda: LoraSettings(target_modules=("auto", "query")), "leave one of them out"),
        (lambda: GateSettings(kind="convolutional", top_k=2), "gate.top_k is read only by gate.kind linear"),
        (lambda: GateSettings(kind="mlp", dropout=0.1), "gate.dropout is read only by gate.kind linear"),
        (lambda: ExportSettings(budget=2.5), "must be a whole number"),
        (lambda: TinySettings(width=100, heads=8), "must be a multiple of 2 x tiny.heads = 16"),
        (
            lambda: TeacherSettings(encoder=SASRecSettings(prior="linear")),
            "teacher.encoder.prior = 'linear' must be none",
        ),
        (lambda: TeacherSettings(gate=GateSettings(kind="linear", top_k=5)), "must not exceed lora.experts = 4"),
        (lambda: TeacherSettings(prompt=PromptSettings(max_tokens=300)), "must not exceed teacher.tiny.context = 256"),
        (
            lambda: TeacherSettings(export=ExportSettings(ranking="grounded")),
            "export.ranking = 'grounded' must be auto or item_head with teacher.objective = item_ce",
        ),
        (
            lambda: replace(TITLE_SETTINGS, export=ExportSettings(ranking="item_head")),
            "must be auto or constrained or grounded with teacher.objective = title_lm",
        ),
        (
            lambda: replace(TITLE_SETTINGS, export=ExportSettings(beams=10, top_n=20)),
            "export.beams = 10 must be at least export.top_n = 20",
        ),
        (
            lambda: TeacherSettings(title=TitleSettings(candidates=99)),
            "teacher.title.candidates = 99 would not be read with teacher.objective = item_ce",
        ),
        (
            lambda: replace(TITLE_SETTINGS, head=HeadSettings(init="random", ridge=1.0)),
            "teacher.head.init = 'random' and teacher.head.ridge = 1.0 would not be read",
        ),
        (
            lambda: replace(TITLE_SETTINGS, train=replace(TITLE_SETTINGS.train, head_learning_rate=0.5)),
            "teacher.train.head_learning_rate = 0.5 would not be read",
        ),
    ],
)
def test_what_cannot_hold_is_refused(build: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build()
