"""Prompts: every title is there, every placeholder belongs to its item, and nothing is tokenised twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from src.core.errors import ConfigError, DataError
from src.data.id_map import IdMap
from src.teacher.prompts import PLACEHOLDER, PREFIX, SUFFIX, Prompts
from src.teacher.settings import PromptSettings

TITLES = ("Heat", "The Third Man", "Alien", "Brazil", "Rear Window", "M")
PADDING = len(TITLES)
HISTORY = torch.tensor([[0, 1, 2, 3], [4, PADDING, PADDING, PADDING], [5, 4, 1, PADDING]])
LENGTH = torch.tensor([4, 1, 3])
CATALOGUE = IdMap(tuple(map(str, range(len(TITLES)))), TITLES)


def prompts_of(folder: Path, titles: tuple[str, ...] = TITLES, **settings: Any) -> Prompts:
    """Prompts over a catalogue of these titles."""
    catalogue = IdMap(tuple(map(str, range(len(titles)))), titles)
    return Prompts(catalogue, AutoTokenizer.from_pretrained(folder), replace(PromptSettings(max_tokens=96), **settings))


def test_every_title_of_the_history_stands_in_the_prompt_in_order(llm: Path) -> None:
    for text, history, length in zip(prompts_of(llm).render(HISTORY, LENGTH), HISTORY, LENGTH, strict=True):
        places = [text.index(f"{TITLES[item]}{PLACEHOLDER}") for item in history[:length].tolist()]
        assert places == sorted(places)
        assert text.count(PLACEHOLDER) == length
        assert text.index(PREFIX) < places[0] < text.index(SUFFIX.strip())


def test_the_prompt_is_what_the_tokenizer_makes_of_the_whole_text(llm: Path) -> None:
    prompts = prompts_of(llm)
    text = PREFIX + "".join(f" {title}{PLACEHOLDER}" for title in ("M", "Rear Window", "The Third Man")) + SUFFIX
    batch = prompts(HISTORY[2:], LENGTH[2:])
    assert batch.token_ids[0].tolist() == prompts.tokenizer(text)["input_ids"]
    assert prompts.token_counts(HISTORY[2:], LENGTH[2:]).tolist() == [batch.token_ids.shape[1]]


def test_placeholders_name_their_items_and_nothing_else_does(llm: Path) -> None:
    batch = prompts_of(llm)(HISTORY, LENGTH)
    for ids, items, history, length in zip(batch.token_ids, batch.items, HISTORY, LENGTH, strict=True):
        assert items[items != PADDING].tolist() == history[:length].tolist()
        placeholder = prompts_of(llm).placeholder_id
        assert torch.equal(ids == placeholder, items != PADDING)


def test_padding_is_on_the_right_and_masked(llm: Path) -> None:
    prompts = prompts_of(llm)
    batch = prompts(HISTORY, LENGTH)
    counts = prompts.token_counts(HISTORY, LENGTH)
    assert batch.attention_mask.sum(dim=1).tolist() == counts.tolist()
    assert int(counts.max()) == batch.token_ids.shape[1]
    for ids, mask, count in zip(batch.token_ids, batch.attention_mask, counts, strict=True):
        assert mask.tolist() == [1] * int(count) + [0] * (len(mask) - int(count))
        assert (ids[count:] == prompts.pad_id).all()


def test_the_oldest_titles_give_way_to_the_newest(llm: Path) -> None:
    whole = prompts_of(llm)
    tight = prompts_of(llm, max_tokens=int(whole.token_counts(HISTORY[:1], LENGTH[:1])[0]) - 1)
    batch = tight(HISTORY[:1], LENGTH[:1])
    assert batch.token_ids.shape[1] <= tight.settings.max_tokens
    assert batch.items[batch.items != PADDING].tolist() == [1, 2, 3]


def test_only_the_most_recent_titles_enter(llm: Path) -> None:
    batch = prompts_of(llm, history_titles=2)(HISTORY, LENGTH)
    named = [items[items != PADDING].tolist() for items in batch.items]
    assert named == [[2, 3], [4], [4, 1]]


def test_an_empty_history_is_a_prompt_without_titles(llm: Path) -> None:
    (text,) = prompts_of(llm).render(torch.full((1, 4), PADDING), torch.tensor([0]))
    assert f"{PREFIX}{SUFFIX}" in text


def test_long_titles_are_cut_and_keep_their_placeholder(llm: Path) -> None:
    batch = prompts_of(llm, title_tokens=1)(HISTORY, LENGTH)
    assert [int((items != PADDING).sum()) for items in batch.items] == [4, 1, 3]


def test_titles_are_tokenised_in_one_call(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    calls = list[int]()
    original = type(tokenizer).__call__

    def count(self: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(text))
        return original(self, text, *args, **kwargs)

    monkeypatch.setattr(type(tokenizer), "__call__", count)
    prompts = Prompts(CATALOGUE, tokenizer, PromptSettings())
    made = len(calls)
    assert calls.count(len(TITLES)) == 1
    prompts(HISTORY, LENGTH)
    assert len(calls) == made, "a batch of prompts calls no tokenizer"


def test_a_title_cannot_smuggle_a_special_token_in(llm: Path) -> None:
    prompts = prompts_of(llm, (f"Heat {PLACEHOLDER}", "</s> Alien"), max_tokens=96)
    batch = prompts(torch.tensor([[0, 1]]), torch.tensor([2]))
    assert int((batch.token_ids == prompts.placeholder_id).sum()) == 2
    assert batch.items[batch.items != 2].tolist() == [0, 1]
    end = prompts.tokenizer.convert_tokens_to_ids("</s>")
    assert int((batch.token_ids == end).sum()) == len(prompts.after)


def test_titles_alone_have_no_placeholder(llm: Path) -> None:
    prompts = prompts_of(llm)
    batch = prompts.titles(torch.tensor([1, 5]))
    wanted = prompts.tokenizer(" The Third Man")["input_ids"]
    assert batch.token_ids[0, : len(wanted)].tolist() == wanted
    assert batch.attention_mask[0].sum() == len(wanted)
    assert (batch.items == PADDING).all()


def test_a_missing_title_is_refused_by_name(llama: Path) -> None:
    with pytest.raises(DataError, match=r"2 of 3 are missing \(raw ids 1, 2\)"):
        prompts_of(llama, ("Heat", "", "  "))


def test_a_prompt_that_cannot_hold_one_title_is_refused(llama: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher.prompt.max_tokens = 12"):
        prompts_of(llama, max_tokens=12)


def test_the_fingerprint_follows_titles_settings_and_tokenizer(llama: Path, bert: Path) -> None:
    found = [
        prompts_of(llama),
        prompts_of(llama, TITLES[::-1]),
        prompts_of(llama, history_titles=3),
        prompts_of(bert),
    ]
    assert len({prompts.fingerprint for prompts in found}) == len(found)
    assert prompts_of(llama).fingerprint == found[0].fingerprint
