"""One ranking of a few rows, as labelling will make many: whether a model and its cache can do it."""

from __future__ import annotations

import torch
from torch import Tensor

from src.teacher.title_lm.decoding.grounding import ground
from src.teacher.title_lm.model import TitleTeacher
from src.teacher.title_lm.scoring import title_catalogue

_COMPARED = 2


@torch.no_grad()
def rank_once(writer: TitleTeacher, history: Tensor, length: Tensor) -> None:
    """Rank by beams as `title_catalogue` does; grounded, with a few titles alone: to embed all would take long."""
    settings, prompts = writer.settings, writer.prompts
    if settings.ranking == "constrained":
        title_catalogue(writer, settings.export, settings.ranking, settings.export.top_n)(history, length)
        return
    embedded, mask = writer.prompt_embeddings(history, length)
    items = writer.embed_titles(torch.arange(min(_COMPARED, writer.num_items), device=writer.device))
    gate = writer.gate_for(history, length)
    ground(writer.llm, prompts.tokenizer, embedded, mask, items, prompts.longest_answer, prompts.end_id, gate)
