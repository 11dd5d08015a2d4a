"""A real pretrained encoder, where this checkout has one beside it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from src.core.paths import REPOSITORY
from src.data.id_map import IdMap
from src.teacher.backbone.llm import load_llm
from src.teacher.backbone.model_check import check_llm
from src.teacher.factory import build_teacher
from src.teacher.settings import PromptSettings
from tests.teacher.builders import CPU, SETTINGS, encoder_of

MINILM = REPOSITORY.parent / "shared" / "models" / "all-MiniLM-L6-v2-fp16"
TITLES = ("Alien", "Aliens", "Toy Story", "Toy Story 2", "The Godfather", "The Godfather: Part II")

pytestmark = pytest.mark.skipif(not MINILM.is_dir(), reason="needs ../shared/models/all-MiniLM-L6-v2-fp16")


def test_it_understands_titles_and_reads_prompts() -> None:
    settings = replace(SETTINGS, llm=str(MINILM), prompt=PromptSettings())
    check_llm(settings)
    catalogue = IdMap(tuple(map(str, range(len(TITLES)))), TITLES)
    language = load_llm(str(MINILM), "auto", CPU)
    assert (language.is_decoder, language.hidden_size, language.model.dtype) == (False, 384, torch.float32)
    teacher = build_teacher(settings, catalogue, encoder_of(num_items=len(TITLES)), language, CPU).eval()
    assert teacher.prompts.placeholder_id >= len(teacher.llm.get_base_model().get_input_embeddings().weight)
    items = torch.nn.functional.normalize(teacher.embed_items(4), dim=1)
    nearest = (items @ items.T).fill_diagonal_(-1).argmax(dim=1)
    assert nearest.tolist() == [1, 0, 3, 2, 5, 4]
    history = torch.tensor([[0, 2, 6, 6, 6], [1, 3, 4, 5, 0]])
    together = teacher(history, torch.tensor([2, 5])).logits
    apart = teacher(history[:1], torch.tensor([2])).logits
    torch.testing.assert_close(together[:1], apart, rtol=1e-4, atol=1e-4)
