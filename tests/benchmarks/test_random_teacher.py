"""Made-up titles part as titles do, and both objectives can be made-up teachers' lessons."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from benchmarks.memory_estimate import arguments
from benchmarks.random_teacher import Catalogue, Place, lesson
from src.core.training import train_step
from src.teacher.title_lm.training import TitleObjective
from src.teacher.training import build_optimiser

PLACE = Place(torch.device("cpu"), torch.float32)


def beginnings(titles: list[list[str]], words: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(title[:words]) for title in titles)


def test_titles_share_their_beginnings_and_hardly_ever_all_of_themselves() -> None:
    catalogue = Catalogue(items=1682, words=9, spread=0.5)
    titles = [text.split() for text in catalogue.id_map().titles]
    assert titles == [text.split() for text in catalogue.id_map().titles]
    assert max(map(len, titles)) == catalogue.longest == 14
    # as ML-100K's titles in pieces of three letters: 0.74, 0.90, 0.94, 0.96; uniform words would part after two
    alone = [sum(count == 1 for count in beginnings(titles, words).values()) / len(titles) for words in (1, 2, 3, 5)]
    assert alone[0] < 0.1
    assert alone[1:] == pytest.approx([0.74, 0.90, 0.96], abs=0.05)
    # one in twenty is of a series: few titles are another one from end to end
    assert len({tuple(title) for title in titles}) > 0.99 * len(titles)


@pytest.mark.parametrize("objective", ["item_ce", "title_lm"])
def test_a_lesson_is_a_step_of_its_objective(objective: str) -> None:
    words = ["--shape", "tiny", "--items", "40", "--objective", objective, "--candidates", "3", "--dropout", "0.5"]
    taught = lesson(arguments([*words, "--title-tokens", "3", "--device", "cpu"]), PLACE, rows=2)
    assert taught.teacher.settings.objective == objective
    assert taught.teacher.settings.lora.dropout == 0.5
    optimiser = build_optimiser(taught.teacher.train(), taught.teacher.settings.train)
    loss = train_step(taught.objective, optimiser, torch.arange(2))
    assert torch.isfinite(loss)
    if isinstance(taught.objective, TitleObjective):
        # every step is hybrid, the dearer kind, and a list holds its row's target
        assert taught.objective.curriculum.now
        assert taught.objective.candidates.shape == (2, 3)
        assert (taught.objective.candidates == taught.objective.train.target.unsqueeze(1)).any(dim=1).all()


def test_a_prompt_of_title_lm_lists_as_many_titles_as_are_asked_for() -> None:
    words = ["--shape", "tiny", "--items", "60", "--objective", "title_lm", "--title-tokens", "3", "--spread", "0"]
    costs = [int(lesson(arguments([*words, "--candidates", n]), PLACE, rows=1).costs[0]) for n in ("0", "4", "8")]
    # each listed title: three words, its placeholder, a comma
    assert costs[2] - costs[1] == 4 * 5
    assert costs[1] > costs[0]
