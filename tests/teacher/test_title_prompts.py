"""Prompts with candidates, and answers: what stands where, what is learned, what gives way, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from src.core.errors import ConfigError, DataError
from src.data.id_map import IdMap
from src.teacher.prompts import PLACEHOLDER, Prompts
from src.teacher.settings import PromptSettings, TitleSettings
from src.teacher.title_lm.prompts import IGNORED, Question, TitlePrompts
from src.teacher.title_lm.text import CANDIDATES_MARK, HISTORY_TEMPLATE, PLAIN_MARK, TEMPLATE, fill
from tests.teacher.title_builders import SENTENCEPIECE, llama_tokenizer, tokenizer

TITLES = ("Heat", "The Third Man", "Alien", "Brazil", "Rear Window", "M")
V = len(TITLES)
HISTORY = torch.tensor([[0, 1, 2, 3], [4, V, V, V], [5, 4, 1, V]])
LENGTH = torch.tensor([4, 1, 3])
CANDIDATES = torch.tensor([[4, 5], [0, 1], [2, 3]])
TARGET = torch.tensor([5, 1, 2])
ASKED = Question(HISTORY, LENGTH, CANDIDATES)


@pytest.fixture(scope="module")
def reader() -> PreTrainedTokenizerFast:
    """Byte-level BPE; BOS before every text."""
    return tokenizer()


def prompts_of(reader: PreTrainedTokenizerFast, context: int | None = None, **changes: Any) -> TitlePrompts:
    """Prompts over TITLES with two candidates."""
    title = TitleSettings(candidates=2, **{k: changes.pop(k) for k in ("answer", "show_candidates") if k in changes})
    titles = changes.pop("titles", TITLES)
    catalogue = IdMap(tuple(map(str, range(len(titles)))), titles)
    settings = replace(PromptSettings(max_tokens=160), **changes)
    return TitlePrompts(catalogue, reader, settings, title, context)


def names(*items: int) -> list[str]:
    """Titles of items."""
    return [TITLES[item] for item in items]


@pytest.mark.parametrize("hybrid", [True, False])
def test_a_prompt_is_the_filled_template(reader: PreTrainedTokenizerFast, hybrid: bool) -> None:
    texts = prompts_of(reader).render(ASKED, hybrid)
    wanted = [
        fill(TEMPLATE, names(0, 1, 2, 3), names(4, 5), "", hybrid),
        fill(TEMPLATE, names(4), names(0, 1), "", hybrid),
        fill(TEMPLATE, names(5, 4, 1), names(2, 3), "", hybrid),
    ]
    assert texts == [f"<s>{text.replace(' [', '[')}" for text in wanted]


def test_a_prompt_without_candidates_holds_the_history_alone(reader: PreTrainedTokenizerFast) -> None:
    texts = prompts_of(reader, show_candidates=False).render(ASKED)
    assert texts[1] == "<s>" + fill(HISTORY_TEMPLATE, names(4), [], "", hybrid=True).replace(" [", "[")


def test_every_placeholder_belongs_to_its_item(reader: PreTrainedTokenizerFast) -> None:
    prompts = prompts_of(reader)
    batch = prompts.ask(ASKED)
    for row in range(3):
        for mark, listed in ((PLACEHOLDER, HISTORY[row, : LENGTH[row]]), (CANDIDATES_MARK, CANDIDATES[row])):
            places = batch.token_ids[row] == reader.convert_tokens_to_ids(mark)
            assert batch.items[row][places].tolist() == listed.tolist()
    plain = prompts.ask(ASKED, hybrid=False)
    assert (plain.items == V).all()
    assert (plain.token_ids == reader.convert_tokens_to_ids(PLAIN_MARK)).sum(dim=1).tolist() == [6, 3, 5]


def test_prompts_are_padded_on_the_left_and_end_alike(reader: PreTrainedTokenizerFast) -> None:
    prompts = prompts_of(reader)
    batch, counts = prompts.ask(ASKED), prompts.token_counts(ASKED)
    width = batch.token_ids.shape[1]
    assert width == int(counts.max())
    for row, count in enumerate(counts.tolist()):
        assert batch.attention_mask[row].tolist() == [0] * (width - count) + [1] * count
    ends = reader(" pick:", add_special_tokens=False)["input_ids"]
    assert (batch.token_ids[:, -len(ends) :] == torch.tensor(ends)).all()


@pytest.mark.parametrize("answer", ["corrected", "as_released"])
def test_labels_are_the_answers_tokens_and_nothing_else(reader: PreTrainedTokenizerFast, answer: str) -> None:
    prompts = prompts_of(reader, answer=answer)
    batch, labels = prompts.answered(ASKED, TARGET)
    counts = prompts.token_counts(ASKED).tolist()
    for row, (count, item) in enumerate(zip(counts, TARGET.tolist(), strict=True)):
        own = labels[row] != IGNORED
        places = own.nonzero().flatten().tolist()
        assert places == list(range(count, count + int(prompts.answer_sizes[item])))
        assert torch.equal(batch.token_ids[row][own], labels[row][own])
        text = reader.decode(labels[row][own])
        assert text == {"corrected": f" {TITLES[item]}</s>", "as_released": f"<s>{TITLES[item]}\n"}[answer]
        assert int(batch.attention_mask[row].sum()) == places[-1] + 1
    alone = prompts.ask(ASKED, left=False)
    assert torch.equal(alone.token_ids[0], batch.token_ids[0, : alone.token_ids.shape[1]])


def test_no_answer_begins_another(reader: PreTrainedTokenizerFast) -> None:
    prompts = prompts_of(reader, titles=("Low Tide", "Low Tide II", "Low", "Low Tide"))
    answers = [tuple(ids) for ids in prompts.answer_ids()]
    assert answers[0] == answers[3]
    assert len(set(answers)) == 3
    assert not any(a != b and a == b[: len(a)] for a in answers for b in answers)
    assert {ids[-1] for ids in answers} == {prompts.end_id} == {reader.eos_token_id}


def test_where_the_tokenizer_adds_its_own_boundary_no_blank_stands_before_a_title() -> None:
    reader = llama_tokenizer()
    # otherwise every title would begin with the same empty piece, and the first step of every answer would be the same
    assert reader.tokenize(" Heat")[0] == "▁"
    assert reader.tokenize("Heat")[0] == "▁H"
    prompts = prompts_of(reader)
    wanted = [reader(title, add_special_tokens=False)["input_ids"] for title in TITLES]
    assert prompts.answer_ids() == [[*ids, reader.eos_token_id] for ids in wanted]
    assert prompts.title_ids == wanted
    item = Prompts(IdMap(tuple(map(str, range(V))), TITLES), llama_tokenizer(), PromptSettings())
    assert item.title_ids == wanted
    assert reader.convert_ids_to_tokens(item.pieces[V + 2][0].item()) == "▁The"
    assert "▁▁" not in "".join(reader.convert_ids_to_tokens(item(HISTORY[:1], LENGTH[:1]).token_ids[0]))


def test_released_answers_are_what_they_were_with_such_a_tokenizer() -> None:
    reader = llama_tokenizer()
    newline = reader("a\n", add_special_tokens=False)["input_ids"][-1:]
    found = prompts_of(reader, answer="as_released").answer_ids()
    assert found == [[*reader(title)["input_ids"], *newline] for title in TITLES]


@pytest.mark.parametrize("answer", ["corrected", "as_released"])
def test_transformers_own_reader_of_the_same_file_gives_the_same_answers(answer: str) -> None:
    theirs = AutoTokenizer.from_pretrained(SENTENCEPIECE.parent)
    assert prompts_of(theirs, answer=answer).answer_ids() == prompts_of(llama_tokenizer(), answer=answer).answer_ids()


def test_counting_in_parts_changes_nothing(reader: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, item = prompts_of(reader), Prompts(IdMap(tuple(map(str, range(V))), TITLES), reader, PromptSettings())
    whole, alone = prompts.token_counts(ASKED), item.token_counts(HISTORY, LENGTH)
    seen = list[int]()
    choose = TitlePrompts.choose

    def watched(self: TitlePrompts, question: Question) -> Any:
        seen.append(len(question.length))
        return choose(self, question)

    monkeypatch.setattr(TitlePrompts, "choose", watched)
    monkeypatch.setattr("src.teacher.prompts.COUNTED_AT_ONCE", 2)
    monkeypatch.setattr("src.teacher.title_lm.prompts.COUNTED_AT_ONCE", 2)
    assert torch.equal(prompts.token_counts(ASKED), whole)
    assert torch.equal(item.token_counts(HISTORY, LENGTH), alone)
    assert seen == [2, 1]
    # two titles and a comma less
    listed = torch.stack([prompts.sizes[row].sum() + prompts.sizes[prompts.comma] for row in CANDIDATES])
    assert torch.equal(prompts.token_counts(ASKED._replace(candidates=None)), whole - listed)


def test_answers_are_whole_where_titles_in_prompts_are_cut(reader: PreTrainedTokenizerFast) -> None:
    prompts = prompts_of(reader, title_tokens=1)
    assert reader.decode(prompts.answer_ids()[1]) == " The Third Man</s>"
    assert "The Third Man" not in prompts.render(ASKED)[0]


def test_the_oldest_titles_give_way_and_candidates_never(reader: PreTrainedTokenizerFast) -> None:
    whole = int(prompts_of(reader).token_counts(ASKED)[0])
    tight = prompts_of(reader, max_tokens=whole - 1)
    assert "Alien[HistoryEmb]" in tight.render(ASKED)[0]
    batch = tight.ask(Question(HISTORY[:1], LENGTH[:1], CANDIDATES[:1]))
    assert batch.items[batch.items != V].tolist() == [1, 2, 3, 4, 5]
    assert batch.token_ids.shape[1] <= whole - 1
    exact = prompts_of(reader, max_tokens=whole).ask(ASKED)
    assert exact.items[0][exact.items[0] != V].tolist() == [0, 1, 2, 3, 4, 5]


def test_only_the_most_recent_titles_enter(reader: PreTrainedTokenizerFast) -> None:
    batch = prompts_of(reader, history_titles=2).ask(ASKED)
    assert [row[row != V].tolist() for row in batch.items] == [[2, 3, 4, 5], [4, 0, 1], [4, 1, 2, 3]]


def test_fewer_candidates_than_others_and_an_empty_history(reader: PreTrainedTokenizerFast) -> None:
    asked = Question(torch.full((1, 4), V), torch.tensor([0]), torch.tensor([[3, V]]))
    (text,) = prompts_of(reader).render(asked)
    assert text == "<s>" + fill(TEMPLATE, [], names(3), "", hybrid=True).replace(" [C", "[C").replace(
        "other: .", "other:."
    )


def test_a_prompt_without_room_for_candidates_is_refused(reader: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match=r"max_tokens = 40: a prompt with the 2 longest titles as candidates"):
        prompts_of(reader, max_tokens=40)


def test_a_title_longer_than_the_context_is_refused_by_name(reader: PreTrainedTokenizerFast) -> None:
    endless = (*TITLES[:-1], "M " * 300)
    with pytest.raises(DataError, match=r"title of 5 = 'M M .*the language model reads 256"):
        prompts_of(reader, context=256, titles=endless)


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(reader: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match=r"max_tokens = 160: with the longest answer .* exceeds the 164"):
        prompts_of(reader, context=164)


def test_a_missing_title_is_refused(reader: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"1 of 2 are missing"):
        prompts_of(reader, titles=("Heat", " "))


def test_the_fingerprint_follows_the_answers_and_the_words(reader: PreTrainedTokenizerFast) -> None:
    variants: list[dict[str, Any]] = [{}, {"answer": "as_released"}, {"show_candidates": False}, {"history_titles": 3}]
    found = [prompts_of(reader, **variant).fingerprint for variant in variants]
    assert len(set(found)) == len(found)
    assert prompts_of(reader).fingerprint == found[0]
