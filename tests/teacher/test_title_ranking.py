"""The seam between a teacher that writes and the rankings of the whole catalogue: one title's score, two ways."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from src.teacher.settings import GateSettings
from src.teacher.title_lm.decoding.beam_search import beam_search
from src.teacher.title_lm.decoding.title_tree import TitleTree
from src.teacher.title_lm.prompts import IGNORED
from tests.fixtures import NUM_ITEMS
from tests.teacher.test_ilora_model import HISTORY, LENGTH
from tests.teacher.title_builders import save_random_causal, title_teacher_of


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_catalogues_ranking_is_that_of_the_answers_likelihoods(tmp_path: Path, family: str) -> None:
    teacher = title_teacher_of(save_random_causal(tmp_path, family), gate=GateSettings(kind="linear"))
    tree = TitleTree.of(teacher.title_token_ids(), teacher.prompts.end_id)
    embedded, mask = teacher.prompt_embeddings(HISTORY, LENGTH)
    gate = teacher.gate_for(HISTORY, LENGTH)
    ranking = beam_search(teacher.llm, embedded, mask, tree, top_n=NUM_ITEMS, beams=NUM_ITEMS, gate=gate)
    question = teacher.question(HISTORY, LENGTH)
    likelihood = torch.zeros(len(HISTORY), NUM_ITEMS)
    with torch.no_grad():
        for item in range(NUM_ITEMS):
            forward = teacher(question, torch.full((len(HISTORY),), item))
            labels = forward.labels.masked_fill(forward.labels == IGNORED, 0)
            tokens = forward.logits.log_softmax(dim=2).gather(2, labels.unsqueeze(2)).squeeze(2)
            likelihood[:, item] = tokens.masked_fill(forward.labels == IGNORED, 0.0).sum(dim=1)
    torch.testing.assert_close(ranking.log_probability, likelihood.gather(1, ranking.items), rtol=1e-4, atol=1e-4)
    assert (ranking.log_probability.diff(dim=1) <= 1e-6).all()
    assert ranking.items.sort(dim=1).values.tolist() == [list(range(NUM_ITEMS))] * len(HISTORY)
